"""`accel-train init`: a commented configuration for data of one's own, written after looking at it."""

import json
import shlex
from pathlib import Path
from typing import Any

from accel_train.config.load import check_config
from accel_train.config.yaml_text import read_yaml
from accel_train.data.text import CaptionTokenizer, open_tokenizer
from accel_train.data.tokenizer_files import DATASET_TOKENIZER, find_tokenizer
from accel_train.errors import UserError
from accel_train.interrupts import uninterrupted
from accel_train.models.pretrained import quiet_transformers
from accel_train.tools.init.asked import Asked
from accel_train.tools.init.choices import text_limit
from accel_train.tools.init.classification import classification_page
from accel_train.tools.init.contrastive import clip_page, dual_page
from accel_train.tools.init.look import Seen, as_dict, look
from accel_train.tools.init.multimodal import alignment_page, llm_page
from accel_train.tools.init.page import Page
from accel_train.tools.init.scorer import scorer_page
from accel_train.tools.init.source import Import, needed_import
from accel_train.tools.init.weights import WHOLE, Weights, read_all
from accel_train.tools.plan.run_plan import make_plan

MADE_FOR = {
    "chinese_clip": "contrastive",
    "dual_encoder": "contrastive",
    "scorer": "scorer",
    "sequence_classification": "sequence_classification",
    "multimodal_alignment": "multimodal_llm",
    "multimodal_llm": "multimodal_llm",
}
"""The kind of dataset of each workload."""
PAGES = {
    "chinese_clip": clip_page,
    "scorer": scorer_page,
    "sequence_classification": classification_page,
    "multimodal_alignment": alignment_page,
    "multimodal_llm": llm_page,
}
LONGEST_TEXT = 512
"""Tokens; the most that BERT has positions for."""
CLIP_POSITIONS = {"clip": 77, "siglip": 64, "chinese_clip": 512, "chinese_clip_resnet": 512}
READS_TEXT = ("model", "llm", "text", "aligned")
"""Parts of `--weights` whose tokenizer is the run's, the first that is there."""


def init(
    workload: str,
    data: str,
    output: str | None,
    *,
    weights: list[str],
    tokenizer: str | None,
    images: str | None,
    importing: bool,
) -> dict[str, Any]:
    """Writes the configuration and returns what --json prints. Raises UserError, with nothing written."""
    quiet_transformers()
    target = Path(output or f"{_name_of(data)}_{workload}.yaml")
    if target.exists():
        raise UserError(f"{target} already exists, and nothing is overwritten. Choose another file by -o.")
    found = read_all(workload, weights)
    named = tokenizer or _tokenizer_of(found)
    needed = needed_import(data, MADE_FOR[workload], images=images, with_tokenizer=named is None)
    if needed is not None:
        if not importing:
            raise UserError(_import_first(needed, workload, output, weights, tokenizer), code="AT500")
        _import(needed)
    asked = _asked(workload, needed.output if needed else data, target, found, named)
    page = dual_page(asked) if workload == "dual_encoder" and WHOLE not in found else _page(asked)
    text = page.render()
    config = check_config(read_yaml(text), [], str(target))
    plan = make_plan(config, world_size=1)
    _write(target, text)
    return {
        "config": str(target),
        "task": config.task,
        "dataset": asked.seen.path,
        "found": as_dict(asked.seen),
        "seen": asked.seen.lines,
        "total_steps": plan.length.total_steps,
        "advice": [*plan.notes, *plan.hazards, *plan.advice],
        "next": [f"accel-train {command} {shlex.quote(str(target))}" for command in ("plan", "find-lr", "train")],
    }


def _page(asked: Asked) -> Page:
    return PAGES.get(asked.workload, clip_page)(asked)


def _name_of(data: str) -> str:
    return Path(data.partition(":")[2] or data).resolve().stem.replace("-", "_")


def _tokenizer_of(found: dict[str, Weights]) -> str | None:
    """The tokenizer that belongs to the weights. Raises UserError where weights come without theirs."""
    for part in READS_TEXT:
        if part not in found:
            continue
        tokenizer = found[part].tokenizer
        if tokenizer is None and part != "aligned":
            raise UserError(
                f"--weights: {found[part].source} holds no tokenizer, and token ids mean something to the weights alone "
                "that were trained with them. Give the one that belongs to them by --tokenizer."
            )
        return tokenizer
    return None


def _import_first(needed: Import, workload: str, output: str | None, weights: list[str], tokenizer: str | None) -> str:
    words = ["accel-train", "init", workload, needed.output]
    words += [] if output is None else ["-o", output]
    words += [word for source in weights for word in ("--weights", source)]
    words += [] if tokenizer is None else ["--tokenizer", tokenizer]
    return (
        f"{needed.source} holds no dataset.json, so it must be imported first:\n  {needed.command()}\n"
        f"  {shlex.join(words)}\nor add --import to have both done at once."
    )


def _import(needed: Import) -> None:
    """As `accel-train import` would; what it says goes with the report of this command."""
    if needed.made_for == "multimodal_llm" and needed.images is None:
        raise UserError("--import: spoken images need --images PATH too, the file or folder with the images.")
    options: dict[str, Any] = {"build_tokenizer": needed.build_tokenizer}
    if needed.made_for == "contrastive":
        from accel_train.tools.imports.pairs import import_data

        import_data(needed.source, needed.output, valid_share=needed.valid_share, **options)
    elif needed.made_for == "scorer":
        from accel_train.data.readers.ratings import RatingColumns
        from accel_train.tools.imports.ratings import import_ratings

        columns = RatingColumns()
        import_ratings(needed.source, needed.output, columns=columns, valid_share=needed.valid_share, **options)
    elif needed.made_for == "sequence_classification":
        from accel_train.tools.imports.texts import import_texts

        import_texts(needed.source, needed.output, valid_share=needed.valid_share, **options)
    else:
        from accel_train.tools.imports.speech import import_speech

        import_speech(needed.source, needed.output, images=str(needed.images), **options)


def _asked(workload: str, data: str, target: Path, found: dict[str, Weights], named: str | None) -> Asked:
    seen = look(data, MADE_FOR[workload])
    if named is None and not seen.has_tokenizer:
        raise UserError(
            f"{data} holds no tokenizer. Import it with --build-tokenizer 8000, give one by --tokenizer, or give pretrained "
            "weights by --weights."
        )
    tokenizer = named or DATASET_TOKENIZER
    opened = open_tokenizer(find_tokenizer(tokenizer, data), LONGEST_TEXT)
    limit, share = _text_limit(seen, opened, found)
    task = "contrastive" if MADE_FOR[workload] == "contrastive" else workload
    return Asked(
        workload, task, str(target), f"runs/{target.stem}", seen, found, tokenizer, opened.vocab_size, limit, share
    )


def _text_limit(seen: Seen, tokenizer: CaptionTokenizer, found: dict[str, Weights]) -> tuple[int, float]:
    """max_text_length, and the share of the texts that it cuts; both are said."""
    most = min([CLIP_POSITIONS.get(str(one.model_type), LONGEST_TEXT) for one in found.values()] or [LONGEST_TEXT])
    lengths = sorted(tokenizer.num_tokens(text) for text in seen.texts)
    limit, share = text_limit(lengths, most)
    seen.lines.append(
        f"texts: {lengths[len(lengths) // 2]} tokens in the middle, {lengths[-1]} at most; max_text_length {limit} cuts "
        f"{share:.1%} of them"
    )
    return limit, share


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with uninterrupted(), target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{target} already exists, and nothing is overwritten. Choose another file by -o.") from error
    except OSError as error:
        raise UserError(f"{target} can't be written: {error.strerror}. Choose another place by -o.") from error


def print_report(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    lines = [f"{report['config']}: written for {report['dataset']}", *(f"  {line}" for line in report["seen"])]
    lines += [f"  note: {line}" for line in report["advice"]]
    print("\n".join([*lines, "next:", *(f"  {command}" for command in report["next"])]))
