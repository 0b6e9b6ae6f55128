"""`sweep`."""

import argparse

from accel_train.commands.arguments import add_config, make_parser, positive


def sweep(argv: list[str]) -> None:
    """Searches for the best values of configuration keys.

    Each trial is a training run in a folder of its own. CONFIG is a configuration, with --search for each key, or a file
    with a section `search` and the keys `config`, `sweep_dir`, `trials`, `score`, `pruner`, `seed`, `launch`,
    `max_failures`, `keep_checkpoints`. Any number of workers may be started on one sweep_dir, on any machines that
    share it; each goes on with what a killed one left behind.

    Exit codes: 0 done, 1 too many failures, 2 bad configuration, 75 stopped by a signal with the trial saved.
    """
    example = (
        "accel-train sweep configs/quickstart.yaml --trials 20 --search 'optimizer.towers.text.lr=log 1e-4 1e-2' "
        "--search 'optimizer.towers.text.layer_decay=uniform 0.7 1'"
    )
    parser = make_parser(sweep, example)
    add_config(parser)
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY=FORM",
        help="what to try for a key: log LOW HIGH, uniform LOW HIGH, int LOW HIGH [STEP], choice [A, B, ...] or "
        "= EXPRESSION; may be repeated",
    )
    parser.add_argument(
        "--trials", type=positive, metavar="N", help="runs to start in all, over all workers (default: 40)"
    )
    parser.add_argument("--score", metavar="NAME", help="what to maximise (default: the score that judges the runs)")
    parser.add_argument("--sweep-dir", metavar="FOLDER", help="folder of the sweep (default: run_dir with _sweep)")
    parser.add_argument("--pruner", metavar="NAME", help="what ends trials early: median (default), hyperband or none")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the search (default: 0)")
    parser.add_argument("--launch", metavar="COMMAND", help="launcher of each trial's ranks (default: one process)")
    parser.add_argument(
        "--max-failures", type=positive, metavar="N", help="failed trials in a row that stop a worker (default: 5)"
    )
    parser.add_argument(
        "--keep-checkpoints", metavar="WHICH", help="best (default), those of the best trial alone, or all"
    )
    parser.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="workers to start on this machine (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON; progress goes to standard error")
    parser.add_argument("--one-of-several", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)
    names = ("trials", "score", "sweep_dir", "pruner", "seed", "launch", "max_failures", "keep_checkpoints")
    given = {name: value for name in names if (value := vars(arguments)[name]) is not None}

    from accel_train.tools.sweep.command import sweep_command

    sweep_command(
        arguments.config,
        overrides=arguments.overrides,
        options=given,
        search=arguments.search,
        workers=arguments.workers,
        is_one_of_several=arguments.one_of_several,
        as_json=arguments.json,
        argv=argv,
    )
