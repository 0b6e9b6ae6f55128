"""`bench`: how fast a configuration trains here."""

from pathlib import Path

from accel_train.commands.arguments import OVERRIDES_HELP, load, make_parser, positive
from accel_train.errors import UserError


def bench(argv: list[str]) -> None:
    """Measures how fast training is as launched: samples/s, memory, waiting, communication.

    Ratios are taken in turns in one run: against a bare PyTorch loop, and of a step in micro-batches against the same
    global batch at once. --data measures the loader alone and says how many workers are enough; --checkpoint measures what
    a save costs, without a configuration. --calibrate measures the host itself, and the links between the launch's ranks,
    and keeps it in the user's cache for `plan`. Nothing is written into run_dir, and nothing else is left behind.
    """
    parser = make_parser(bench, "torchrun --nproc-per-node 8 -m accel_train bench configs/quickstart.yaml")
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="configuration file (YAML)")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--data", action="store_true", help="measure the loader alone, with more and more workers")
    kinds.add_argument("--checkpoint", action="store_true", help="measure what a checkpoint costs on this file system")
    kinds.add_argument("--calibrate", action="store_true", help="measure this host, for the times that `plan` gives")
    parser.add_argument("--warmup", type=positive, metavar="N", help="steps before the clock starts (default: 5)")
    parser.add_argument("--steps", type=positive, metavar="N", help="steps that are timed (default: 20)")
    parser.add_argument("--rounds", type=positive, metavar="N", help="rounds in which ways take turns (default: 12)")
    parser.add_argument("--mebibytes", type=positive, metavar="N", help="with --checkpoint: its size (default: 512)")
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="with --checkpoint: where to write it (default: the folder for temporary files)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_intermixed_args(argv)
    of_steps = {"--warmup": arguments.warmup, "--steps": arguments.steps, "--rounds": arguments.rounds}
    of_checkpoints = {"--mebibytes": arguments.mebibytes, "--folder": arguments.folder}
    if arguments.checkpoint:
        ignored = of_steps | {"CONFIG": arguments.config}
    elif arguments.calibrate:
        ignored = of_steps | of_checkpoints
    else:
        ignored = of_checkpoints | ({"--rounds": arguments.rounds} if arguments.data else {})
    for option, value in ignored.items():
        if value is not None:
            chosen = [kind for kind in ("checkpoint", "data", "calibrate") if vars(arguments)[kind]]
            kind = f"--{chosen[0]}" if chosen else "training"
            raise UserError(f"{option} says nothing about {kind}, so it would be ignored. Take it out.")
    if arguments.checkpoint:
        if arguments.folder is not None and not Path(arguments.folder).is_dir():
            raise UserError(f"--folder: {arguments.folder} is no folder. Make it first, or choose another.")
        from accel_train.tools.bench.command import bench_checkpoints

        bench_checkpoints(arguments.mebibytes or 512, arguments.folder, as_json=arguments.json)
        return
    if arguments.config is None:
        raise UserError("bench needs a configuration file, or --checkpoint. `accel-train bench --help` explains it.")
    config = load(arguments)
    if arguments.calibrate:
        from accel_train.tools.calibration.command import calibrate

        calibrate(config, as_json=arguments.json)
        return

    from accel_train.tools.bench.command import bench as run
    from accel_train.tools.bench.command import bench_data
    from accel_train.tools.bench.training import Length

    length = Length(arguments.warmup or 5, arguments.steps or 20, arguments.rounds or 12)
    if arguments.data:
        bench_data(config, length, as_json=arguments.json)
    else:
        run(config, length, as_json=arguments.json)
