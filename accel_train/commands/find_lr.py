"""`find-lr`."""

from accel_train.commands.arguments import add_config, load, make_parser, positive, rates


def find_lr(argv: list[str]) -> None:
    """Tests rising learning rates on the first steps, and suggests one by the curve of the loss.

    A step is taken at each rate, rising exponentially. All towers rise together, in their ratio to each other, unless
    --tower names one that rises alone while the others rest. Every curve begins at the weights that training would
    begin at. Nothing of the run in run_dir changes; curves, a page and a picture are left in run_dir/find_lr.
    """
    parser = make_parser(
        find_lr, "accel-train find-lr configs/quickstart.yaml --tower image --tower text", name="find-lr"
    )
    add_config(parser)
    parser.add_argument(
        "--from", dest="first", type=float, default=1e-7, metavar="LR", help="lowest rate (default: 1e-7)"
    )
    parser.add_argument(
        "--to", dest="last", type=float, default=1e-2, metavar="LR", help="highest rate (default: 1e-2)"
    )
    parser.add_argument("--steps", type=positive, default=100, metavar="N", help="steps of each curve (default: 100)")
    parser.add_argument(
        "--tower",
        action="append",
        metavar="NAME",
        default=[],
        help="let the rate of this tower rise alone; may be repeated",
    )
    parser.add_argument(
        "--table",
        type=rates,
        metavar="LR,LR,...",
        default=[],
        help="also train briefly at each of these rates, and score",
    )
    parser.add_argument("--table-steps", type=positive, metavar="N", help="length of each of these (default: an epoch)")
    parser.add_argument("--test-split", metavar="NAME", help="score this split too, where the validation score is best")
    parser.add_argument("--output", metavar="FOLDER", help="where to write (default: run_dir/find_lr)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_intermixed_args(argv)
    config = load(arguments)

    from accel_train.tools.find_lr.command import Limits
    from accel_train.tools.find_lr.command import find_lr as run

    run(
        config,
        limits=Limits(arguments.first, arguments.last, arguments.steps),
        towers=arguments.tower,
        table=arguments.table,
        table_steps=arguments.table_steps,
        test_split=arguments.test_split,
        output=arguments.output,
        as_json=arguments.json,
    )
