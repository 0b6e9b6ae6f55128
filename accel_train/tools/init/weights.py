"""What `--weights` names: Hugging Face folders, checkpoint files, or runs of one's own, one for each part of the model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_train.config.contrastive import is_checkpoint_file
from accel_train.config.schema import RunConfig
from accel_train.data.tokenizer_files import TOKENIZER_FILES
from accel_train.errors import UserError
from accel_train.json_text import read_json
from accel_train.models.pretrained import read_architecture
from accel_train.tools.trained import RUN_CONFIG, open_config

WHOLE = "model"
"""The part that is meant where `--weights` names none."""
PARTS = {
    "chinese_clip": (WHOLE,),
    "dual_encoder": (WHOLE, "image", "text"),
    "scorer": (WHOLE,),
    "sequence_classification": (WHOLE,),
    "multimodal_alignment": ("image", "audio", "text"),
    "multimodal_llm": ("aligned", "image", "audio", "llm"),
}


@dataclass(frozen=True)
class Weights:
    source: str
    model_type: str | None
    """Of config.json; None for a checkpoint file, which doesn't say, and for a run."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """config.json."""
    run: RunConfig | None = None
    """The configuration, where the source is a run."""

    @property
    def tokenizer(self) -> str | None:
        """The folder itself, if a tokenizer lies in it; a run's own."""
        if self.run is not None:
            tokenizer: str = self.run.data.model_dump()["tokenizer"]
            return tokenizer
        return self.source if any((Path(self.source) / name).is_file() for name in TOKENIZER_FILES) else None

    def preprocessing(self) -> dict[str, Any]:
        """What preprocessor_config.json says of images or audio; empty without one."""
        path = Path(self.source) / "preprocessor_config.json"
        if not path.is_file():
            return {}
        try:
            found = read_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"--weights: {path}: not JSON ({error}).") from error
        return found if isinstance(found, dict) else {}

    def depth(self, part: str | None = None) -> int | None:
        """Number of layers of the model, or of its `vision_config` or `text_config`; None where it isn't said."""
        settings = self.architecture if part is None else self.architecture.get(part, {})
        found = settings.get("num_hidden_layers") if isinstance(settings, dict) else None
        return found if isinstance(found, int) else None


def read_all(workload: str, given: list[str]) -> dict[str, Weights]:
    """`[PART=]SOURCE` of the command line, by part. Raises UserError."""
    parts = PARTS[workload]
    found: dict[str, Weights] = {}
    for text in given:
        part, equals, source = text.partition("=")
        if not equals or (part not in parts and Path(text).exists()):
            part, source = WHOLE, text
        if part not in parts:
            named = ", ".join(other for other in parts if other != WHOLE)
            how = f"PART=FOLDER, where PART is {named}" if named else "FOLDER"
            raise UserError(f"--weights: found {text!r}; for {workload} it is {how}.")
        if part in found:
            raise UserError(f"--weights: {part} is given twice ({found[part].source}, {source}). Name it once.")
        found[part] = _read(source)
        if part == "aligned" or (workload == "dual_encoder" and part == WHOLE):
            _must_be_run(part, found[part])
    return found


def _must_be_run(part: str, found: Weights) -> None:
    if found.run is None:
        example = (
            "aligned=RUN of the task multimodal_alignment"
            if part == "aligned"
            else "a run, or image=FOLDER text=FOLDER"
        )
        raise UserError(f"--weights: {found.source} is no run of accel-train (it has no {RUN_CONFIG}). Give {example}.")


def _read(source: str) -> Weights:
    if (Path(source) / RUN_CONFIG).is_file():
        return Weights(source, None, run=open_config(source, []))
    if is_checkpoint_file(source):
        if not Path(source).is_file():
            raise UserError(f"--weights: {source} does not exist.")
        return Weights(source, None)
    architecture = read_architecture(source, "--weights")
    return Weights(source, architecture["model_type"], architecture)
