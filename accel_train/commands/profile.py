"""`profile`: where the time of a step goes."""

from accel_train.commands.arguments import add_config, load, make_parser, positive


def profile(argv: list[str]) -> None:
    """Records a few steps as launched under torch's profiler: a table and a trace.

    Time is told by phase of the loop and by operator. Phases are data, forward, loss, gather, backward, reduce, step,
    log, checkpoint. Each rank leaves a trace, which https://ui.perfetto.dev opens; with several ranks its name ends
    in the rank. Learning rates are 0 meanwhile, and nothing else of the run in run_dir changes.
    """
    parser = make_parser(profile, "accel-train profile configs/quickstart.yaml --trace trace.json.gz")
    add_config(parser)
    parser.add_argument("--steps", type=positive, default=5, metavar="N", help="steps that are recorded (default: 5)")
    parser.add_argument("--warmup", type=positive, default=3, metavar="N", help="steps before these (default: 3)")
    parser.add_argument("--top", type=positive, default=15, metavar="N", help="operators in the table (default: 15)")
    parser.add_argument("--trace", metavar="FILE", help=".json or .json.gz (default: run_dir/profile/trace.json.gz)")
    parser.add_argument(
        "--no-checkpoint", action="store_true", help="leave out the checkpoint that is written aside after the steps"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all ranks, instead of tables")
    arguments = parser.parse_intermixed_args(argv)
    config = load(arguments)

    from accel_train.tools.profile.command import Length
    from accel_train.tools.profile.command import profile as run

    length = Length(arguments.warmup, arguments.steps, arguments.top, not arguments.no_checkpoint)
    run(config, length, trace=arguments.trace, as_json=arguments.json)
