"""`report`."""

from accel_train.commands.arguments import make_parser


def report(argv: list[str]) -> None:
    """Writes a page about a run, or a comparison of several: one HTML file that needs no network.

    Losses, scores, learning rates and gradients, the groups, throughput, what the model gets right and wrong, incidents,
    configuration. Works while the run goes on. Runs that differ only in their seed are drawn and averaged together.
    """
    parser = make_parser(report, "accel-train report runs/quickstart")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the run_dir of a run; several are compared")
    parser.add_argument(
        "--output", metavar="FILE", help="where to write (default: RUN/report.html; for several runs ./report.html)"
    )
    parser.add_argument("--json", action="store_true", help="print everything on the page as JSON, too")
    arguments = parser.parse_args(argv)

    from accel_train.tools.report.command import report_command

    report_command(arguments.runs, output=arguments.output, as_json_=arguments.json)
