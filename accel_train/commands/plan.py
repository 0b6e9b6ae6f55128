"""`plan`: what a run would do."""

import argparse
import math

from accel_train.commands.arguments import add_config, load, make_parser, positive
from accel_train.errors import UserError

UNITS = {"gib": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6, "tib": 2**40, "tb": 10**12}
GIGA, TERA, MICRO = 1e9, 1e12, 1e-6


def plan(argv: list[str]) -> None:
    """Shows what `train` would do, without reading weights, or data beyond sizes and a few samples.

    Prints every parameter group with its learning rate, weight decay and clipping, the number of steps, the memory of each
    rank by part, and, once `bench --calibrate` has measured this host, the time of a step by part.
    """
    parser = make_parser(
        plan,
        "accel-train plan configs/chinese_clip_muge.yaml engine=zero2 --ranks 8 --picture lr.png",
    )
    add_config(parser)
    parser.add_argument("--ranks", type=positive, metavar="N", help="plan for so many ranks (default: as launched)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--picture", metavar="PNG", help="draw the learning rates, with --fits what fits, with --scale the scaling"
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--fits", type=_size, metavar="SIZE", help="largest micro_batch_size for a device of SIZE, such as 80GiB"
    )
    kinds.add_argument("--scale", action="store_true", help="model the step on more and more GPUs")
    links = parser.add_argument_group("for --scale")
    links.add_argument(
        "--intra-node", type=_rate, metavar="GB/s", help="bandwidth of a GPU to others of its node, one way"
    )
    links.add_argument("--inter-node", type=_rate, metavar="GB/s", help="bandwidth of a node to others, one way")
    links.add_argument("--latency-us", type=_rate, metavar="US", help="of a message to a neighbour (default: 5)")
    links.add_argument("--gpus-per-node", type=positive, metavar="N", help="GPUs in a node (default: 8)")
    links.add_argument("--gpus", type=positive, metavar="N", help="model up to so many GPUs (default: 1024)")
    links.add_argument(
        "--tflops", type=_rate, metavar="TFLOP/s", help="speed that a GPU reaches (default: this host's, calibrated)"
    )
    links.add_argument("--memory-bandwidth", type=_rate, metavar="GB/s", help="of a GPU's memory, beside --tflops")
    arguments = parser.parse_intermixed_args(argv)
    _check_scale(arguments)
    config = load(arguments)

    from accel_train.tools.plan.command import plan as run

    scale = None
    if arguments.scale:
        from accel_train.tools.plan.scale import Links, ScaleQuestion

        scale = ScaleQuestion(
            Links(
                arguments.intra_node * GIGA,
                arguments.inter_node * GIGA,
                (arguments.latency_us or 5.0) * MICRO,
                arguments.gpus_per_node or 8,
            ),
            None if arguments.tflops is None else arguments.tflops * TERA,
            None if arguments.memory_bandwidth is None else arguments.memory_bandwidth * GIGA,
            arguments.gpus or 1024,
        )
    run(
        config,
        as_json=arguments.json,
        picture=arguments.picture,
        world_size=arguments.ranks,
        fit=arguments.fits,
        scale=scale,
    )


def _check_scale(arguments: argparse.Namespace) -> None:
    """Raises UserError for what --scale lacks, and for what would be ignored without it."""
    options = {
        "--intra-node": arguments.intra_node,
        "--inter-node": arguments.inter_node,
        "--latency-us": arguments.latency_us,
        "--gpus-per-node": arguments.gpus_per_node,
        "--gpus": arguments.gpus,
        "--tflops": arguments.tflops,
        "--memory-bandwidth": arguments.memory_bandwidth,
    }
    if not arguments.scale:
        for option, value in options.items():
            if value is not None:
                raise UserError(f"{option} is for --scale, and would be ignored. Add --scale, or take it out.")
        return
    for option in ("--intra-node", "--inter-node"):
        if options[option] is None:
            raise UserError(
                f"--scale needs {option} GB/s: how fast the links are. An H100 node of 8 has about 300 and 8 x 400 Gbit/s "
                "between nodes, 350."
            )
    if (arguments.tflops is None) != (arguments.memory_bandwidth is None):
        raise UserError("--tflops and --memory-bandwidth describe a GPU together: give both, or neither.")


def _size(text: str) -> int:
    compact = text.strip().lower().replace(" ", "")
    for unit, factor in UNITS.items():
        number = compact.removesuffix(unit)
        if number != compact:
            try:
                size = float(number) * factor
            except ValueError:
                break
            if 1 <= size < math.inf:
                return int(size)
    raise argparse.ArgumentTypeError(f"found {text!r}; it must be a size such as 80GiB, 24GB or 512MiB")


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a number above 0")
    return value
