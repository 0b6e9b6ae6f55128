"""`import` for images with captions."""

from accel_train.commands.arguments import add_import, make_parser


def import_pairs(argv: list[str]) -> None:
    """Turns images and captions of any known format into one dataset folder, and checks every record.

    Formats: chinese_clip_tsv, chinese_clip_lmdb, hf_datasets, webdataset, parquet, jsonl, csv, image_folder.
    """
    parser = make_parser(
        import_pairs,
        "accel-train import downloads/pairs.csv data/pairs --valid-share 0.1 --build-tokenizer 8000",
        name="import",
    )
    add_import(parser)
    parser.add_argument("--image-column", metavar="NAME", help="column with image files or bytes, in tables")
    parser.add_argument("--text-column", metavar="NAME", help="column with captions, in tables")
    parser.add_argument("--image-id-column", metavar="NAME", help="column that names the image, in tables")
    parser.add_argument("--text-id-column", metavar="NAME", help="column that names the caption, in tables")
    parser.add_argument(
        "--valid-share", type=float, metavar="SHARE", help="take this share of the images for validation"
    )
    parser.add_argument(
        "--build-tokenizer", type=int, metavar="N", help="make a tokenizer of N tokens from the captions"
    )
    arguments = parser.parse_args(argv)

    from accel_train.tools.imports.pairs import import_data
    from accel_train.tools.imports.summary import print_import

    summary = import_data(
        arguments.source,
        arguments.output,
        format=arguments.format,
        splits=arguments.split,
        image_column=arguments.image_column,
        text_column=arguments.text_column,
        image_id_column=arguments.image_id_column,
        text_id_column=arguments.text_id_column,
        valid_share=arguments.valid_share,
        build_tokenizer=arguments.build_tokenizer,
        max_bad_records=arguments.max_bad_records,
        show_progress=not arguments.json,
    )
    print_import(summary, as_json=arguments.json)
