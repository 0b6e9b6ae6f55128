"""`import` for labelled texts."""

from accel_train.commands.arguments import add_import, make_parser


def import_texts(argv: list[str]) -> None:
    """Turns labelled texts of any known format into one dataset folder, and checks every record.

    Formats: hf_datasets, parquet, jsonl, csv, label_lines (`label ||| text`). A label-mapping.json beside the files names
    the classes.
    """
    parser = make_parser(
        import_texts,
        "accel-train import downloads/sst5 data/sst5 --task sequence_classification --build-tokenizer 8000",
        name="import",
    )
    add_import(parser)
    parser.add_argument("--text-column", metavar="NAME", help="column with texts, in tables")
    parser.add_argument("--label-column", metavar="NAME", help="column with labels, in tables")
    parser.add_argument("--text-id-column", metavar="NAME", help="column that names the text, in tables")
    parser.add_argument(
        "--valid-share", type=float, metavar="SHARE", help="take this share of the texts for validation"
    )
    parser.add_argument(
        "--build-tokenizer", type=int, metavar="N", help="make a tokenizer of N tokens from the training texts"
    )
    arguments = parser.parse_args(argv)

    from accel_train.data.readers.labelled_texts import TextColumns
    from accel_train.tools.imports import texts as tool

    summary = tool.import_texts(
        arguments.source,
        arguments.output,
        format=arguments.format,
        splits=arguments.split,
        columns=TextColumns(arguments.text_column, arguments.label_column, arguments.text_id_column),
        valid_share=arguments.valid_share,
        build_tokenizer=arguments.build_tokenizer,
        max_bad_records=arguments.max_bad_records,
        show_progress=not arguments.json,
    )
    tool.print_text_import(summary, as_json=arguments.json)
