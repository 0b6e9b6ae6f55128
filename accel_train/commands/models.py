"""Commands on trained models."""

from accel_train.commands.arguments import CHECKPOINT_HELP, OVERRIDES_HELP, Parser, checkpoint_name, make_parser
from accel_train.errors import UserError

SOURCE_HELP = "run folder, a folder written by `accel-train export`, or a configuration with pretrained weights"


def evaluate(argv: list[str]) -> None:
    """Scores a model on a split, or on classes without training for them (zero-shot).

    Each sample counts once, over all ranks. --zero-shot takes a folder with one subfolder of images for each class. Its
    prompts are the templates with the class's name put in; without --templates built-in ones, Chinese where a name is
    Chinese, else English.
    """
    parser = make_parser(evaluate, "accel-train evaluate runs/quickstart --split valid --contact-sheet sheet.png")
    _add_source(parser)
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--split", help="split of the dataset (default: data.valid_split)")
    parser.add_argument("--contact-sheet", metavar="PNG", help="draw some queries with the images found for them")
    parser.add_argument(
        "--zero-shot", metavar="FOLDER", help="classify the images of a folder with a subfolder a class"
    )
    parser.add_argument("--class-names", metavar="FILE", help="names of the subfolders: TSV (folder, names), or JSON")
    parser.add_argument("--templates", metavar="T", help="file with a template a line, builtin:zh or builtin:en")
    parser.add_argument("--predictions", metavar="FILE", help="write a line for each sample (.csv or .jsonl)")
    arguments = parser.parse_intermixed_args(argv)
    for_split = {"--split": arguments.split, "--contact-sheet": arguments.contact_sheet}
    for_folder = {"--class-names": arguments.class_names, "--templates": arguments.templates}
    ignored = for_folder if arguments.zero_shot is None else for_split
    for option, value in ignored.items():
        if value is not None:
            rule = "is for --zero-shot" if arguments.zero_shot is None else "is not for --zero-shot"
            raise UserError(f"{option} {rule}, so it would be ignored. Take it out.")
    if arguments.zero_shot is None:
        from accel_train.tools.evaluation import evaluate_command

        evaluate_command(
            arguments.source,
            split=arguments.split,
            overrides=arguments.overrides,
            as_json=arguments.json,
            contact_sheet=arguments.contact_sheet,
            predictions=arguments.predictions,
            checkpoint=arguments.checkpoint,
        )
        return

    from accel_train.tools.zero_shot import zero_shot_command

    zero_shot_command(
        arguments.source,
        arguments.zero_shot,
        class_names=arguments.class_names,
        templates=arguments.templates,
        predictions=arguments.predictions,
        overrides=arguments.overrides,
        as_json=arguments.json,
        checkpoint=arguments.checkpoint,
    )


def embed(argv: list[str]) -> None:
    """Writes a model's features of images and texts: of a split, a folder or a file.

    Works over all ranks. After a kill the same command goes on where it stopped. OUTPUT ends in .safetensors or .parquet.
    For the multimodal tasks OUTPUT is FOLDER/SPLIT.safetensors, what the encoders give for the split; training reads the
    folder as data.features.
    """
    parser = make_parser(embed, "accel-train embed runs/quickstart features.safetensors --split train")
    _add_source(parser)
    parser.add_argument("output", metavar="OUTPUT", help="file to write; it must not exist yet")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--split", help="all images and all texts of a split")
    what.add_argument("--images", metavar="FOLDER", help="all images of a folder and its subfolders")
    what.add_argument("--texts", metavar="FILE", help="texts of a file, one a line")
    parser.add_argument("--data", metavar="PATH", help="dataset of the split (default: data.path)")
    parser.add_argument(
        "--max-unreadable", type=int, default=0, metavar="N", help="bad images to leave out (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.max_unreadable < 0:
        raise UserError(f"--max-unreadable is {arguments.max_unreadable}; it is a number from 0.")

    from accel_train.tools.embed import Asked
    from accel_train.tools.embed import embed as embed_pairs
    from accel_train.tools.embed_senses import embed_senses, has_senses
    from accel_train.tools.trained import open_config

    run = embed_senses if has_senses(open_config(arguments.source, arguments.overrides)) else embed_pairs
    run(
        arguments.source,
        arguments.output,
        Asked(arguments.data, arguments.split, arguments.images, arguments.texts, arguments.max_unreadable),
        overrides=arguments.overrides,
        checkpoint=arguments.checkpoint,
        as_json=arguments.json,
    )


def export(argv: list[str]) -> None:
    """Writes a run's model as a Hugging Face folder, or as a file of Chinese-CLIP's.

    `from_pretrained` of transformers loads the folder.
    """
    parser = make_parser(export, "accel-train export runs/quickstart exported/quickstart --checkpoint best")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        nargs="?",
        help="folder, or .pt file, to write; it must not exist yet (default: RUN/export, or RUN/export.pt)",
    )
    parser.add_argument("--checkpoint", type=checkpoint_name, default="best", metavar="C", help=CHECKPOINT_HELP)
    parser.add_argument(
        "--format",
        choices=("hugging_face", "cn_clip"),
        default="hugging_face",
        help="cn_clip: one .pt file that the original Chinese-CLIP trainer reads",
    )
    parser.add_argument(
        "--lora", choices=("merged", "adapter"), help="adapters merged into the decoder (default), or alone, for peft"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    arguments = parser.parse_args(argv)

    from accel_train.tools.export import export as run

    run(
        arguments.run,
        arguments.output,
        checkpoint=arguments.checkpoint,
        format=arguments.format,
        lora=arguments.lora,
        as_json=arguments.json,
    )


def _add_source(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("--checkpoint", type=checkpoint_name, metavar="C", help=f"of a run: {CHECKPOINT_HELP}")
