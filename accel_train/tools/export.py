"""`accel-train export`: a run's weights as a Hugging Face folder, or as a checkpoint of the original Chinese-CLIP."""

import json
import shutil
from pathlib import Path
from typing import Literal

from accel_train.config.load import dump_config
from accel_train.config.multimodal_llm import MultimodalLlmConfig
from accel_train.errors import UserError
from accel_train.models.cn_clip_files import write_cn_clip
from accel_train.tasks.multimodal_llm import MultimodalLlmTask
from accel_train.tools.trained import EXPORT_CONFIG, Trained, open_config, open_trained
from accel_train.writable import check_writable


def export(
    run: str,
    output: str | None = None,
    *,
    checkpoint: str | None,
    format: Literal["hugging_face", "cn_clip"] = "hugging_face",
    lora: Literal["merged", "adapter"] | None = None,
    as_json: bool = False,
) -> None:
    """Writes aside and renames, so that a failed export leaves nothing.

    `output` is a folder, or for cn_clip a .pt file; None is `export` or `export.pt` in the run's folder. Adapters of a
    language model are merged into it, or with `lora` adapter written alone. Raises UserError if `output` exists, and for a
    model that has no such format.
    """
    target = Path(output or Path(run) / ("export.pt" if format == "cn_clip" else "export"))
    if target.exists():
        raise UserError(f"{target} exists already, and nothing is overwritten. Choose another name.")
    if format == "cn_clip" and target.suffix != ".pt":
        raise UserError(f"{target} does not end in .pt, but --format cn_clip writes one file. Choose another name.")
    check_writable(target, "OUTPUT", makes_folders=True)
    trained = open_trained(run, open_config(run, []), checkpoint=checkpoint)
    if lora is not None:
        _check_lora(trained)
    if format == "cn_clip":
        # The original counts epochs of its own data, so its --resume begins at the first one.
        write_cn_clip(trained.model, str(target), epoch=0, step=trained.step or 0, name=Path(run).name)
    else:
        _write_folder(trained, target, lora)
    root = target if target.is_dir() else target.parent
    sizes = {
        str(file.relative_to(root)): file.stat().st_size
        for file in [target, *sorted(target.rglob("*"))]
        if file.is_file()
    }
    if as_json:
        print(
            json.dumps({"source": trained.source, "output": str(target), "bytes": sizes}, indent=1, ensure_ascii=False)
        )
        return
    print(f"{trained.source} → {target}")
    for name, size in sizes.items():
        print(f"  {name}  {size / 2**20:.2f} MiB")


def _write_folder(trained: Trained, target: Path, lora: Literal["merged", "adapter"] | None) -> None:
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if lora == "adapter":
            assert isinstance(trained.task, MultimodalLlmTask)
            trained.task.export_adapter(trained.model, str(aside))
        else:
            trained.task.export(trained.model, str(aside))
            (aside / EXPORT_CONFIG).write_text(dump_config(trained.config), encoding="utf-8")
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_lora(trained: Trained) -> None:
    config = trained.config
    if not isinstance(config, MultimodalLlmConfig) or config.model.lora is None:
        raise UserError(f"--lora: the model of {trained.source} has no adapters. Leave it out.")
