"""Damaged and made-up files of other projects: weights come out as they went in, or one error names the file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.models.cn_clip_files import cn_clip_optimizer_state
from accel_train.models.torch_files import read_torch_file, read_weights
from tests.fuzzing import FUZZ, altered, anything, damaged
from tests.models.originals import ChineseCLIP, OpenCLIP, VisualTransformer, saved

FEWER = settings(FUZZ, max_examples=100)
SHAPES = [(), (0,), (1,), (3, 0), (2,), (7, 5), (32, 32), (33, 32), (1, 32, 1, 1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small files: a checkpoint as torch saves it now, and as it did before; weights in safetensors."""
    folder = tmp_path_factory.mktemp("files")
    content = {
        "epoch": 3,
        "state_dict": {"module.a": torch.arange(6.0).reshape(2, 3), "module.b": torch.ones(4).half()},
    }
    torch.save(content, folder / "a.pt")
    torch.save(content, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(content["state_dict"], folder / "a.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["a.pt", "old.pt", "a.safetensors"])
def test_damaged_files_are_read_whole_or_refused(name: str, files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / name

    @FUZZ
    @given(damaged(files[name]))
    def check(content: bytes) -> None:
        path.unlink(missing_ok=True)  # an earlier one may still be mapped
        path.write_bytes(content)
        try:
            weights = read_weights(str(path), "here")
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert all(value.clone().numel() < 100 for value in weights.values())

    check()


def change_a_tensor(draw: st.DrawFn, weights: dict[str, Tensor]) -> None:
    name = draw(st.sampled_from(sorted(weights)))
    fault = draw(st.sampled_from(["shape", "dtype", "remove", "rename", "nan"]))
    value = weights.pop(name)
    if fault == "shape":
        weights[name] = torch.zeros(draw(st.sampled_from(SHAPES)))
    elif fault == "dtype":
        kind = draw(st.sampled_from([torch.int8, torch.bool, torch.bfloat16, torch.complex64]))
        weights[name] = torch.zeros(value.shape, dtype=kind)
    elif fault == "rename":
        weights[name.replace("0", draw(st.sampled_from(["1", "9" * 30, "", "x"])))] = value
    elif fault == "nan":
        weights[name] = torch.full(value.shape, float("nan"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["chinese_clip", "clip"])
def test_made_up_weights_make_a_model_or_one_error(family: str, make_config: Any, tmp_path: Path) -> None:
    original = ChineseCLIP(VisualTransformer()) if family == "chinese_clip" else OpenCLIP(nn.GELU())
    weights = dict(original.state_dict())
    path = tmp_path / "a.pt"
    said = (
        {} if family == "chinese_clip" else {part: {"hidden_act": "gelu"} for part in ("vision_config", "text_config")}
    )
    section = {"type": family, "pretrained": str(path), "config": said}

    @FEWER
    @given(st.data())
    def check(data: st.DataObject) -> None:
        changed = dict(weights)
        for _ in range(data.draw(st.integers(1, 3))):
            change_a_tensor(data.draw, changed)
        path.unlink(missing_ok=True)
        torch.save({"state_dict": changed}, path)
        try:
            build_contrastive_model(make_config(section))
        except UserError as error:
            assert str(path) in str(error) or str(error).startswith(("model.config", "data."))

    check()


def test_made_up_optimizer_parts(make_config: Any, tmp_path: Path) -> None:
    theirs = ChineseCLIP(VisualTransformer())
    path = tmp_path / "a.pt"
    torch.save({"state_dict": saved(theirs)}, path)
    ours = build_contrastive_model(make_config({"type": "chinese_clip", "pretrained": str(path)}))
    zeros = {number: {"exp_avg": torch.zeros(1)} for number in range(2)}
    part = {"state": {"0": 1}, "param_groups": [{"params": [0, 1]}, {"params": [2, 3]}]}

    @FUZZ
    @given(altered(part), st.booleans())
    def check(optimizer: Any, with_numbers: bool) -> None:
        if with_numbers and isinstance(optimizer, dict):
            optimizer["state"] = zeros
        path.unlink(missing_ok=True)
        torch.save({"optimizer": optimizer}, path)
        with pytest.raises(UserError, match=r"a\.pt"):
            cn_clip_optimizer_state(str(path), ours)

    check()


@FUZZ
@given(st.dictionaries(st.text(max_size=5), anything, max_size=3))
def test_what_plain_values_a_file_holds_they_come_back(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "plain.pt"
    path.unlink(missing_ok=True)
    torch.save(content, path)
    assert repr(read_torch_file(str(path), "here")) == repr(content)


@pytest.mark.slow
def test_an_altered_config_makes_a_model_or_one_error(tiny: Any, make_config: Any, tmp_path: Path) -> None:
    CLIPModel(build_contrastive_model(make_config(tiny["clip"])).config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    before = load_file(tmp_path / "model.safetensors")

    @FEWER
    @given(altered(config))
    def check(value: Any) -> None:
        path.write_text(json.dumps(value))
        try:
            model = build_contrastive_model(make_config({"type": "clip", "pretrained": str(tmp_path)}))
        except UserError as error:
            assert str(tmp_path) in str(error) or str(error).startswith("data.")
        else:
            loaded = model.state_dict()
            assert all(torch.equal(loaded[name].reshape(value.shape), value) for name, value in before.items())

    check()
