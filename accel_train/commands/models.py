"""Commands on trained models."""

from accel_train.commands.arguments import CHECKPOINT_HELP, OVERRIDES_HELP, checkpoint_name, make_parser


def evaluate(argv: list[str]) -> None:
    """Scores a run, or an exported model, on a split: each sample once, over all ranks."""
    parser = make_parser(evaluate, "accel-train evaluate runs/quickstart --split valid --contact-sheet sheet.png")
    parser.add_argument("run_or_export", metavar="RUN", help="run folder, or a folder written by `accel-train export`")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)
    parser.add_argument("--split", help="split of the dataset (default: data.valid_split)")
    parser.add_argument("--checkpoint", type=checkpoint_name, default="best", metavar="C", help=CHECKPOINT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--contact-sheet", metavar="PNG", help="draw some queries with the images found for them")
    arguments = parser.parse_intermixed_args(argv)

    from accel_train.tools.evaluation import evaluate_command

    evaluate_command(
        arguments.run_or_export,
        split=arguments.split,
        overrides=arguments.overrides,
        as_json=arguments.json,
        contact_sheet=arguments.contact_sheet,
        checkpoint=arguments.checkpoint,
    )


def export(argv: list[str]) -> None:
    """Writes a run's model as a Hugging Face folder, which `from_pretrained` loads."""
    parser = make_parser(export, "accel-train export runs/quickstart exported/quickstart --checkpoint best")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write; it must not exist yet")
    parser.add_argument("--checkpoint", type=checkpoint_name, default="best", metavar="C", help=CHECKPOINT_HELP)
    arguments = parser.parse_args(argv)

    from accel_train.tools.export import export as run

    run(arguments.run, arguments.output, checkpoint=arguments.checkpoint)
