"""`init`: a configuration to begin with."""

from accel_train.commands.arguments import make_parser
from accel_train.errors import UserError

WORKLOADS = {
    "chinese_clip": "chinese_clip",
    "clip": "chinese_clip",
    "contrastive": "chinese_clip",
    "dual_encoder": "dual_encoder",
    "scorer": "scorer",
    "sequence_classification": "sequence_classification",
    "multimodal_alignment": "multimodal_alignment",
    "multimodal_llm": "multimodal_llm",
}
"""Names that the command takes, and the workload that each means."""


def init(argv: list[str]) -> None:
    """Writes a commented configuration for your data, after looking at it.

    WORKLOAD: chinese_clip (any CLIP or SigLIP too), dual_encoder, scorer, sequence_classification, multimodal_alignment
    (phase 1), multimodal_llm (phase 2). DATA is a dataset folder, or what `import` reads; then the command to import it is
    printed, or with --import carried out. Lengths, sizes, batches, epochs, freezing and rates follow from what is found, and
    each line says why. An existing file is never overwritten.
    """
    parser = make_parser(
        init, "accel-train init chinese_clip data/pairs --weights models/chinese-clip-vit-base-patch16"
    )
    parser.add_argument(
        "workload", metavar="WORKLOAD", help="what to train: " + ", ".join(dict.fromkeys(WORKLOADS.values()))
    )
    parser.add_argument("data", metavar="DATA", help="dataset folder, or files that `accel-train import` reads")
    parser.add_argument("-o", "--output", metavar="CONFIG", help="file to write (default: DATA_WORKLOAD.yaml)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[PART=]FOLDER",
        help="pretrained weights: a Hugging Face folder, a checkpoint file, or a run; for one part of the model "
        "(image, text, audio, llm, aligned) where there are several; may be repeated (default: random weights)",
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer folder (default: the weights', else the dataset's)"
    )
    parser.add_argument("--import", dest="importing", action="store_true", help="import DATA into data/NAME first")
    parser.add_argument("--images", metavar="PATH", help="with --import, for spoken images: where the images are")
    parser.add_argument("--json", action="store_true", help="print what was found and written as JSON")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.workload not in WORKLOADS:
        raise UserError(f"WORKLOAD: found {arguments.workload!r}; it must be one of {', '.join(WORKLOADS)}.")
    if arguments.images is not None and not arguments.importing:
        raise UserError("--images is for --import, so it would be ignored. Take it out.")

    from accel_train.tools.init.command import init as run
    from accel_train.tools.init.command import print_report

    report = run(
        WORKLOADS[arguments.workload],
        arguments.data,
        arguments.output,
        weights=arguments.weights,
        tokenizer=arguments.tokenizer,
        images=arguments.images,
        importing=arguments.importing,
    )
    print_report(report, as_json=arguments.json)
