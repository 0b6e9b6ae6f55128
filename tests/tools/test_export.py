import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ChineseCLIPModel

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.tools.export import export
from accel_train.tools.trained import open_config, open_trained


def test_a_file_for_the_original_trainer(exported: str, tmp_path: Path, capsys) -> None:
    export(exported, str(tmp_path / "back.pt"), checkpoint=None, format="cn_clip")
    written = torch.load(tmp_path / "back.pt", weights_only=True)
    assert (written["epoch"], written["step"], written["name"]) == (0, 0, Path(exported).name)
    weights = load_file(Path(exported) / "model.safetensors")
    assert torch.equal(written["state_dict"]["module.visual.proj"], weights["visual_projection.weight"].T)
    assert torch.equal(written["state_dict"]["module.logit_scale"], weights["logit_scale"])
    assert "back.pt  " in capsys.readouterr().out

    config = open_config(exported, [])
    heads = {part: {"num_attention_heads": 2} for part in ("vision_config", "text_config")}
    section = config.model.model_copy(update={"size": None, "pretrained": str(tmp_path / "back.pt"), "config": heads})
    model = open_trained(exported, config, checkpoint=None).model
    again = build_contrastive_model(config.model_copy(update={"model": section}))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def test_a_folder_for_transformers(exported: str, tmp_path: Path) -> None:
    export(exported, str(tmp_path / "folder"), checkpoint=None)
    first, second = (load_file(Path(folder) / "model.safetensors") for folder in (exported, tmp_path / "folder"))
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())
    ChineseCLIPModel.from_pretrained(tmp_path / "folder")


def test_without_a_name_it_lies_in_the_run(exported: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported, run)
    export(str(run), checkpoint=None)
    ChineseCLIPModel.from_pretrained(run / "export")
    export(str(run), checkpoint=None, format="cn_clip")
    assert torch.load(run / "export.pt", weights_only=True)["name"] == "run"
    with pytest.raises(UserError, match="run/export exists already"):
        export(str(run), checkpoint=None)


def test_nothing_is_overwritten_or_left_behind(exported: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "there.pt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export(exported, str(tmp_path / "there.pt"), checkpoint=None, format="cn_clip")
    with pytest.raises(UserError, match=r"does not end in \.pt"):
        export(exported, str(tmp_path / "model"), checkpoint=None, format="cn_clip")

    def full_disk(content, path):
        path.write_bytes(b"part")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(exported, str(tmp_path / "model.pt"), checkpoint=None, format="cn_clip")
    assert [file.name for file in tmp_path.iterdir()] == ["there.pt"]
