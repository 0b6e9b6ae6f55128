"""`import` for spoken images."""

from accel_train.commands.arguments import add_import, make_parser


def import_speech(argv: list[str]) -> None:
    """Turns JSON lines of images with spoken and written captions into one dataset folder, and checks every record.

    A line has image_id, audio (the path of a PCM WAV file) and one caption or more. --images says where the images are:
    `*_imgs.tsv` of Chinese-CLIP's format, or a folder with ID.jpg, ID.png and the like.
    """
    parser = make_parser(
        import_speech,
        "accel-train import downloads/emoji-speech data/emoji-speech --task multimodal_llm --images downloads/emoji-zh",
        name="import",
    )
    add_import(parser)
    parser.add_argument("--images", metavar="PATH", required=True, help="file or folder with the images")
    parser.add_argument(
        "--text-column", action="append", metavar="NAME", help="column with a caption (default: text); may be repeated"
    )
    parser.add_argument(
        "--build-tokenizer", type=int, metavar="N", help="make a tokenizer of N tokens from the captions"
    )
    arguments = parser.parse_args(argv)

    from accel_train.tools.imports.speech import import_speech as run
    from accel_train.tools.imports.speech import print_speech_import

    summary = run(
        arguments.source,
        arguments.output,
        images=arguments.images,
        text_columns=tuple(arguments.text_column or ("text",)),
        format=arguments.format,
        splits=arguments.split,
        build_tokenizer=arguments.build_tokenizer,
        max_bad_records=arguments.max_bad_records,
        show_progress=not arguments.json,
    )
    print_speech_import(summary, as_json=arguments.json)
