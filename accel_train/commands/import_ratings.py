"""`import` for rated images."""

from accel_train.commands.arguments import add_import, make_parser

PARTS = {
    "image": "column with image files or bytes",
    "prompt": "column with the prompt",
    "quality": "column with the rating of the image's quality",
    "consistency": "column with the rating of how well the image fits the prompt",
    "explanation": "column with a text that says why; it may be empty",
    "group": "column with what --valid-share keeps together, such as the picture that several images were made from",
}


def import_ratings(argv: list[str]) -> None:
    """Turns tables of rated images (CSV, TSV, JSONL) into one dataset folder, and checks every record.

    Ratings become 0 to 1 by --rating-range, or else each by the smallest and largest one found.
    """
    parser = make_parser(
        import_ratings,
        "accel-train import downloads/ratings.csv data/rated --task scorer --valid-share 0.2 --rating-range 1 5",
        name="import",
    )
    add_import(parser)
    for part, text in PARTS.items():
        parser.add_argument(f"--{part}-column", metavar="NAME", help=text)
    parser.add_argument("--rating-range", type=float, nargs=2, metavar=("MIN", "MAX"), help="scale of both ratings")
    parser.add_argument(
        "--valid-share", type=float, metavar="SHARE", help="take this share of the groups for validation"
    )
    parser.add_argument("--build-tokenizer", type=int, metavar="N", help="make a tokenizer of N tokens from the texts")
    arguments = parser.parse_args(argv)

    from accel_train.data.readers.ratings import RatingColumns
    from accel_train.tools.imports.ratings import import_ratings as run
    from accel_train.tools.imports.ratings import print_import

    summary = run(
        arguments.source,
        arguments.output,
        columns=RatingColumns(**{part: vars(arguments)[f"{part}_column"] for part in PARTS}),
        format=arguments.format,
        splits=arguments.split,
        valid_share=arguments.valid_share,
        rating_range=tuple(arguments.rating_range) if arguments.rating_range else None,
        build_tokenizer=arguments.build_tokenizer,
        max_bad_records=arguments.max_bad_records,
        show_progress=not arguments.json,
    )
    print_import(summary, as_json=arguments.json)
