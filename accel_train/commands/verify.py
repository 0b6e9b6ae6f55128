"""`verify`: proof on the user's own configuration, data and launch."""

import argparse
import math
from pathlib import Path

from accel_train.commands.arguments import OVERRIDES_HELP, make_parser, positive
from accel_train.errors import UserError


def verify(argv: list[str]) -> None:
    """Compares a step as launched with one process and the whole batch, or replays steps.

    Prints for each parameter group the learning rate asked for and applied, weight decay, the gradient's relative error,
    cosine and length, the update's error, and update to weight. Writes nothing into run_dir. With --resume it goes back to
    an earlier checkpoint, takes the steps after it again, and compares samples, losses and gradient norms with the run's
    ledger, and weights and optimizer state with later checkpoints.

    Exit codes: 0 all as it must be, 1 something is not (the group or the step is named), 2 bad configuration or data.
    """
    parser = make_parser(
        verify,
        "accelerate launch --config_file launch/zero2.yaml --num_processes 8 -m accel_train verify configs/quickstart.yaml",
    )
    parser.add_argument("source", metavar="SOURCE", help="configuration file (YAML), or run folder")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)
    parser.add_argument("--resume", action="store_true", help="replay the last steps of the run and compare")
    parser.add_argument("--steps", type=positive, metavar="N", help="with --resume: replay so many (default: between "
                        "the last two checkpoints)")  # fmt: skip
    parser.add_argument("--step", type=_number, metavar="N", help="take the batch and the learning rates of step N")
    parser.add_argument(
        "--precision",
        choices=("fp32", "as-configured"),
        help="arithmetic of both steps (default: fp32, so that nothing hides behind rounding)",
    )
    parser.add_argument("--at-once", type=positive, metavar="N", help="compute the reference N samples at a time, to save "
                        "memory (default: the whole batch)")  # fmt: skip
    parser.add_argument(
        "--tolerance", type=_tolerance, metavar="X", help="largest relative error (default: 2e-5 in fp32)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_intermixed_args(argv)
    only_step = {"--step": arguments.step, "--precision": arguments.precision, "--at-once": arguments.at_once}
    for option, value in (only_step if arguments.resume else {"--steps": arguments.steps}).items():
        if value is not None:
            raise UserError(
                f"{option} is {'not ' if arguments.resume else ''}for --resume, so it would be ignored. Take it out."
            )

    from accel_train.tools.trained import open_config

    config = open_config(arguments.source, arguments.overrides)
    if Path(arguments.source).is_dir():  # wherever it lies now
        config = config.model_copy(update={"run_dir": arguments.source})
    if arguments.resume:
        from accel_train.tools.verify.resume_check import verify_resume

        verify_resume(config, num_steps=arguments.steps, tolerance=arguments.tolerance, as_json=arguments.json)
        return

    from accel_train.tools.verify.step_check import verify_step

    verify_step(
        config,
        as_configured=arguments.precision == "as-configured",
        tolerance=arguments.tolerance,
        step=arguments.step,
        at_once=arguments.at_once,
        as_json=arguments.json,
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a whole number from 0")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a number above 0, such as 1e-4")
    return value
