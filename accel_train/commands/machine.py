"""Commands about this machine and this program."""

from accel_train.commands.arguments import make_parser


def doctor(argv: list[str]) -> None:
    """Shows what this machine and this launch really are: devices, ranks, backends, versions, disk."""
    parser = make_parser(doctor, "accelerate launch --num_processes 2 -m accel_train doctor")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)

    from accel_train.tools.doctor import doctor as run

    run(as_json=arguments.json)


def schema(argv: list[str]) -> None:
    """Writes the JSON schema of configuration files, for completion and checks in an editor.

    A configuration that begins with `# yaml-language-server: $schema=PATH` uses it.
    """
    parser = make_parser(schema, "accel-train schema schema.json")
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help="file to write (default: standard output)")
    arguments = parser.parse_args(argv)

    from accel_train.tools.schema import schema as run

    run(arguments.output)
