"""Stored features of frozen encoders: the same training as with the encoders in it, or a refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from accel_train import cli
from accel_train.config.load import load_config
from accel_train.config.rules import check_rules
from accel_train.config.schema import RunConfig
from accel_train.data.encoder_features import open_encoder_features
from accel_train.data.spoken_split import open_spoken_split
from accel_train.errors import UserError
from accel_train.models.multimodal import MultimodalAligner
from accel_train.tasks.build import build_task
from accel_train.tools.plan.run_plan import make_plan
from accel_train.train import train
from tests.multimodal import DATA, alignment_config, llm_config
from tests.spoken import write_dataset

FROZEN = {"name": "encoders", "lr": 0, "layers": [r"^(?:image|audio|text)_encoder\."]}
FROZEN_SENSES = FROZEN | {"layers": [r"^(?:image|audio)_encoder\."]}
REST = {"name": "rest", "lr": 3e-3, "layers": ["."]}
Write = Callable[..., str]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_dataset(tmp_path_factory.mktemp("spoken") / "data", train=40, valid=8))


@pytest.fixture
def phase1(path: str, tmp_path: Path) -> dict[str, Any]:
    """A configuration of phase 1 that reads stored features, with dropout in the frozen encoders of audio and text."""
    config = alignment_config(
        path,
        str(tmp_path / "stored"),
        max_steps=3,
        data=DATA | {"path": path, "features": str(tmp_path), "micro_batch_size": 8},
        optimizer={"towers": [FROZEN, REST]},
        log={"log_every": "1 step"},
        evaluation={"evaluate_every": "2 steps"},
        checkpoint={"save_every": "2 steps"},
    ).model_dump(mode="json")
    config["model"]["audio"]["dropout"] = 0.3
    return config


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(configuration, name): a file of it."""

    def write(config: dict[str, Any], name: str = "config.yaml") -> str:
        (tmp_path / name).write_text(yaml.safe_dump(config), encoding="utf-8")
        return str(tmp_path / name)

    return write


def embed(source: str, folder: Path, *splits: str, options: tuple[str, ...] = ()) -> None:
    for split in splits or ("train", "valid"):
        assert cli.main(["embed", source, str(folder / f"{split}.safetensors"), "--split", split, *options]) == 0


def metrics(run_dir: str) -> list[dict[str, float]]:
    """Losses, gradient norms and scores of every line, in order."""
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    parts = ("loss", "norm", "recall", "accuracy", "exact")
    return [
        {key: value for key, value in line.items() if isinstance(value, float) and any(part in key for part in parts)}
        for line in lines
    ]


def assert_same_training(stored: RunConfig, live: RunConfig) -> None:
    scores = train(stored), train(live)
    found, wanted = metrics(stored.run_dir), metrics(live.run_dir)
    assert len(found) == len(wanted) and sum("loss" in line for line in wanted) >= 3
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-6, rel=1e-6)
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def no_encoder(*_: Any, **__: Any) -> None:
    raise AssertionError("an encoder was run")


def test_phase_1_trains_as_with_its_encoders(
    phase1: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(phase1)
    embed(source, tmp_path)
    live = load_config(source, ["data.features=null", f"run_dir={tmp_path / 'live'}"])
    assert_same_training(load_config(source, []), live)
    assert "the encoders don't run" in (tmp_path / "stored" / "run.log").read_text()
    # The whole run again without any encoder, and evaluation by itself.
    monkeypatch.setattr(MultimodalAligner, "image_tokens", no_encoder)
    monkeypatch.setattr(MultimodalAligner, "audio_tokens", no_encoder)
    train(load_config(source, [f"run_dir={tmp_path / 'again'}"]))
    assert cli.main(["evaluate", str(tmp_path / "stored")]) == 0


def test_phase_2_trains_as_with_its_encoders(phase1: dict[str, Any], write: Write, path: str, tmp_path: Path) -> None:
    """From what the encoders in the run of phase 1 give."""
    train(load_config(write(phase1), ["data.features=null"]))
    embed(phase1["run_dir"], tmp_path)
    model = llm_config(path, "unused").model_dump(mode="json")["model"] | {
        name: phase1["model"][name] for name in ("image", "audio", "aligner")
    }
    config = phase1 | {
        "task": "multimodal_llm",
        "model": model,
        "loss": {},
        "data": llm_config(path, "unused").data.model_dump(mode="json") | {"features": str(tmp_path)},
        "run_dir": str(tmp_path / "stored2"),
        "initialize_from": phase1["run_dir"],
        "optimizer": phase1["optimizer"] | {"towers": [FROZEN_SENSES, REST]},
    }
    source = write(config, "phase2.yaml")
    live = load_config(source, ["data.features=null", f"run_dir={tmp_path / 'live2'}"])
    assert_same_training(load_config(source, []), live)


def test_a_run_goes_on(phase1: dict[str, Any], write: Write, tmp_path: Path) -> None:
    source = write(phase1)
    embed(source, tmp_path)
    whole = train(load_config(source, [f"run_dir={tmp_path / 'whole'}", "schedule.name=constant"]))
    train(load_config(source, ["schedule.name=constant", "max_steps=2"]))
    assert train(load_config(source, ["schedule.name=constant"])) == whole


def test_vectors_are_those_of_the_split(phase1: dict[str, Any], write: Write, path: str, tmp_path: Path) -> None:
    embed(write(phase1), tmp_path, "valid")
    split = open_spoken_split(path, "valid")
    stored = open_encoder_features(str(tmp_path), split, ("image", "audio", "text"))
    assert {kind: len(found) for kind, found in stored.vectors.items()} == {
        "image": len(split.images),
        "audio": len(split.recordings),
        "text": len(split.texts),
    }
    assert stored.vectors["image"].std(0).max() > 0, "all images look alike"
    assert not list(tmp_path.glob("*.parts"))


def test_refusals(phase1: dict[str, Any], write: Write, tmp_path: Path) -> None:
    source = write(phase1)
    with pytest.raises(UserError, match=r"there is no .*train\.safetensors\. Write it with"):
        train(load_config(source, []))
    embed(source, tmp_path)
    trains = phase1 | {"optimizer": phase1["optimizer"] | {"towers": [REST]}}
    later = phase1 | {"phases": [{"name": "all", "start": "2 steps", "towers": [{"name": "encoders", "lr": 1e-4}]}]}
    for config in (trains, later):
        with pytest.raises(UserError, match="the image encoder trains"):
            train(load_config(write(config, "trains.yaml"), []))
    with pytest.raises(UserError, match="the image encoder trains"):
        make_plan(load_config(write(trains, "trains.yaml"), []))
    for override, different in (
        ("seed=1", "this run's image encoder; different: weights"),
        ("data.image_mean=[0.5, 0.5, 0.5]", "image encoder; different: inputs"),
        ("precision=bf16", "image encoder; different: precision"),
        ("data.max_text_length=9", "text encoder; different: inputs"),
    ):
        with pytest.raises(UserError, match=different):
            train(load_config(source, [override, f"run_dir={tmp_path / 'refused'}"]))


def test_another_dataset_is_refused(phase1: dict[str, Any], write: Write, tmp_path: Path) -> None:
    other = str(write_dataset(tmp_path / "other", train=20, valid=9))
    source = write(phase1)
    embed(source, tmp_path, options=("--data", other))
    with pytest.raises(UserError, match=r"train\.safetensors holds features of other data than the split train"):
        train(load_config(source, []))


def test_a_broken_file_is_refused(phase1: dict[str, Any], write: Write, tmp_path: Path) -> None:
    source = write(phase1)
    embed(source, tmp_path)
    (tmp_path / "train.safetensors").write_bytes(b"no features")
    with pytest.raises(UserError, match=r"train\.safetensors can't be used"):
        train(load_config(source, []))


def test_valid_must_be_of_the_same_encoders_when_a_run_goes_on(
    phase1: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    source = write(phase1)
    embed(source, tmp_path)
    train(load_config(source, ["max_steps=2", "schedule.name=constant"]))
    (tmp_path / "valid.safetensors").unlink()
    embed(source, tmp_path, "valid", options=("seed=1",))
    with pytest.raises(UserError, match=r"valid\.safetensors is not from this run's image encoder; different: weights"):
        train(load_config(source, ["schedule.name=constant"]))


def test_what_embed_refuses(
    phase1: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(phase1)
    for arguments, message in (
        (["features.safetensors", "--split", "train"], "looks for train.safetensors"),
        (["x.safetensors", "--texts", source], "a multimodal one embeds a --split"),
        (["train.safetensors", "--split", "train", "--checkpoint", "best"], "is no run"),
    ):
        assert cli.main(["embed", source, str(tmp_path / arguments[0]), *arguments[1:]]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_contradictions() -> None:
    data = DATA | {"path": "x", "features": "folder"}
    for augmentation in ({"crop_scale": [0.9, 1.0]}, {"horizontal_flip": 0.5}):
        found = check_rules(alignment_config("x", "x", data=data | {"augmentation": augmentation}))
        assert any("data.features: stored features are those of images without augmentation" in line for line in found)
    tokens = llm_config("x", "x", changes={"data": data}, projector={"reads": "tokens"})
    assert any("only one vector of each image and recording is stored" in line for line in check_rules(tokens))
    blind = llm_config("x", "x", changes={"data": data}, image=None, audio=None, aligner=None, projector=None)
    assert any(line.startswith("data.features: it would be ignored") for line in check_rules(blind))


def test_example_batch_has_the_shapes_of_a_real_one(phase1: dict[str, Any], write: Write, tmp_path: Path) -> None:
    source = write(phase1)
    embed(source, tmp_path)
    task = build_task(load_config(source, []))
    real, made = task.build_dataset("train").read(0, 0), task.example_batch(3)
    assert made is not None and set(made) == {"image_vector", "audio_vector", "text_vector"}
    for name, column in made.items():
        assert (column.shape[1:], column.dtype) == (real[name].shape, torch.float32)
    assert make_plan(load_config(source, [])).memory is not None
