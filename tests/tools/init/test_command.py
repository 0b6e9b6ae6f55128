"""What `init` writes loads, plans and trains, for every workload; it overwrites nothing and says what it saw."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel, ViTConfig, ViTModel, WhisperConfig, WhisperForConditionalGeneration

from accel_train import cli
from accel_train.config.load import load_config
from accel_train.tools.plan.run_plan import make_plan
from tests import labelled, rated, spoken
from tests.short_runs import metrics
from tests.tools.init.conftest import WRITERS, put_tokenizer, write_pairs

SHORT = ["num_epochs=null", "max_steps=2", "data.global_batch_size=4", "data.micro_batch_size=4", "data.num_workers=0"]
QUICK = ["precision=fp32", "evaluation.at_start=false", "log.log_every=1 step", "compute.num_threads=1"]
DataOf = Callable[[str], str]


def init(*argv: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()  # what a run before it said
    code = cli.main(["init", *argv, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    report: dict[str, Any] = json.loads(captured.out)
    return report


def train(config: str, run_dir: Path, *changes: str) -> list[dict[str, float]]:
    assert cli.main(["train", config, f"run_dir={run_dir}", *SHORT, *QUICK, *changes]) == 0
    return metrics(run_dir, "train")


@pytest.mark.parametrize("workload", WRITERS)
@pytest.mark.slow
def test_from_random_weights_every_workload_trains(
    workload: str, data_of: DataOf, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = init(workload, data_of(workload), capsys=capsys)
    config = load_config(report["config"])
    assert make_plan(config, world_size=1).length.total_steps == report["total_steps"] > 0
    assert config.data.valid_split == "valid"
    assert Path(report["config"]).read_text(encoding="utf-8").count("# ") > 20
    losses = [row["loss"] for row in train(report["config"], tmp_path / "run")]
    assert len(losses) == 2
    assert all(0 < loss < 30 for loss in losses)


@pytest.mark.slow
def test_a_run_of_phase_1_goes_into_phase_2(
    data_of: DataOf, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = init("multimodal_alignment", data_of("multimodal_alignment"), "-o", "first.yaml", capsys=capsys)
    train(first["config"], tmp_path / "aligned")
    decoder = spoken.write_decoder(tmp_path / "decoder")
    put_tokenizer(decoder)
    weights = ["--weights", "aligned=aligned", "--weights", f"llm={decoder}"]
    report = init("multimodal_llm", data_of("multimodal_llm"), "-o", "second.yaml", *weights, capsys=capsys)
    config: Any = load_config("second.yaml")
    assert config.initialize_from == "aligned"
    assert config.data.tokenizer == str(decoder)
    assert config.model.lora is not None
    frozen = [tower.name for tower in config.optimizer.towers if tower.lr == 0]
    assert frozen == ["aligned", "llm"]
    assert len(train(report["config"], tmp_path / "run")) == 2


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with an image, an audio and a text encoder of random weights."""
    root = tmp_path_factory.mktemp("backbones")
    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=100, **sizes)).save_pretrained(root / "text")
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(root / "image")
    whisper = WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        vocab_size=60,
    )
    whisper.pad_token_id = whisper.bos_token_id = whisper.eos_token_id = whisper.decoder_start_token_id = 0
    WhisperForConditionalGeneration(whisper).save_pretrained(root / "audio")
    put_tokenizer(root / "text")
    (root / "image" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    return {part: str(root / part) for part in ("image", "audio", "text")}


@pytest.mark.slow
def test_pretrained_backbones_learn_in_their_upper_layers(
    backbones: dict[str, str],
    data_of: DataOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = [word for part in ("image", "text") for word in ("--weights", f"{part}={backbones[part]}")]
    init("dual_encoder", data_of("dual_encoder"), "-o", "dual.yaml", *weights, capsys=capsys)
    config: Any = load_config("dual.yaml")
    towers = {tower.name: tower for tower in config.optimizer.towers}
    assert (towers["text"].layers, towers["text"].train_last, towers["text"].layer_decay) == ("bert", 4, 0.9)
    assert (towers["image"].layers, towers["image"].train_last) == ("vit", 4)
    assert (config.data.image_size, config.data.image_mean) == (32, [0.5, 0.5, 0.5])
    assert config.data.tokenizer == backbones["text"]
    assert len(train("dual.yaml", tmp_path / "run")) == 2
    # A run is weights too: towers, sizes and tokenizer are its own.
    init("dual_encoder", data_of("dual_encoder"), "-o", "again.yaml", "--weights", str(tmp_path / "run"), capsys=capsys)
    again: Any = load_config("again.yaml")
    assert again.initialize_from == str(tmp_path / "run")
    assert (again.model, again.optimizer.towers) == (config.model, config.optimizer.towers)
    init("scorer", data_of("scorer"), "-o", "scorer.yaml", "--weights", str(tmp_path / "run"), capsys=capsys)
    scorer: Any = load_config("scorer.yaml")
    assert scorer.model.clip == config.model
    assert [tower.lr for tower in scorer.optimizer.towers] == [0, 0, 0, 2e-3]  # 45 ratings: heads alone


def test_pretrained_encoders_of_phase_1_are_frozen(
    backbones: dict[str, str],
    data_of: DataOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = [word for part, folder in backbones.items() for word in ("--weights", f"{part}={folder}")]
    init("multimodal_alignment", data_of("multimodal_alignment"), "-o", "a.yaml", *weights, capsys=capsys)
    config: Any = load_config("a.yaml")
    assert {tower.name: tower.lr for tower in config.optimizer.towers} == {
        "image": 0,
        "audio": 0,
        "text": 0,
        "aligner": 1e-4,
        "temperature": 1e-4,
    }
    assert (config.data.max_audio_seconds, config.data.sample_rate) == (30, 16_000)  # Whisper's


@pytest.mark.parametrize("workload", ["chinese_clip", "scorer"])
def test_a_pretrained_clip_is_frozen_for_few_samples(
    workload: str,
    exported: str,
    data_of: DataOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    report = init(workload, data_of(workload), "-o", "new.yaml", "--weights", exported, capsys=capsys)
    config: Any = load_config("new.yaml")
    lrs = {tower.name: tower.lr for tower in config.optimizer.towers}
    assert (lrs["image"], lrs["text"]) == (0, 0)
    assert lrs["heads"] >= 1e-3
    assert config.precision == "bf16"
    assert not [line for line in report["advice"] if "lr comes to" in line]


def test_a_pretrained_classifier_has_its_own_tokenizer_and_a_low_rate(
    backbones: dict[str, str],
    data_of: DataOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = data_of("sequence_classification")
    report = init("sequence_classification", data, "-o", "c.yaml", "--weights", backbones["text"], capsys=capsys)
    config: Any = load_config("c.yaml")
    (tower,) = config.optimizer.towers
    assert (tower.layers, tower.lr, tower.layer_decay) == ("bert", 2e-5, 0.9)
    assert config.data.tokenizer == backbones["text"]
    assert report["found"]["class_shares"] == pytest.approx({"music": 1 / 3, "food": 1 / 3, "travel": 1 / 3})


@pytest.mark.parametrize(
    ("workload", "write", "command"),
    [
        ("clip", write_pairs, "data/pairs --valid-share 0.1 --build-tokenizer 8000"),
        ("scorer", lambda folder: rated.write_ratings(folder, 40), "--task scorer --valid-share 0.2"),
        ("sequence_classification", labelled.write_source, "data/raw --task sequence_classification"),
        ("multimodal_llm", spoken.write_source, "--task multimodal_llm --images IMAGES"),
    ],
)
def test_raw_data_is_imported_first(
    workload: str,
    write: Callable[[Path], Path],
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "raw")
    assert cli.main(["init", workload, str(source), "-o", "new.yaml"]) == 2
    message = capsys.readouterr().err
    assert f"accel-train import {source}" in message
    assert command in message
    assert f"accel-train init {'chinese_clip' if workload == 'clip' else workload} data/" in message
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    images = ["--images", str(source)] if workload == "multimodal_llm" else []
    report = init(workload, str(source), "-o", "new.yaml", "--import", *images, capsys=capsys)
    assert Path(report["dataset"]).parent == Path("data")
    assert load_config("new.yaml").data.path == report["dataset"]


def test_nothing_is_overwritten(
    data_of: DataOf, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("precious")
    assert cli.main(["init", "scorer", data_of("scorer"), "-o", "mine.yaml"]) == 2
    assert "mine.yaml already exists, and nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "precious"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet", "{data}"], "WORKLOAD: found 'resnet'; it must be one of chinese_clip, clip,"),
        (["scorer", "nowhere"], "nowhere does not exist"),
        (["chinese_clip", "{data}"], "was imported for the task scorer, not for contrastive"),
        (["scorer", "{data}", "--weights", "nowhere"], "--weights: nowhere is not a folder"),
        (["scorer", "{data}", "--weights", "nowhere.pt"], "--weights: nowhere.pt does not exist"),
        (["scorer", "{data}", "--weights", "text=nowhere"], "--weights: found 'text=nowhere'; for scorer it is FOLDER"),
        (["multimodal_llm", "{data}", "--weights", "x"], "PART=FOLDER, where PART is aligned, image, audio, llm"),
        (["scorer", "{data}", "--images", "x"], "--images is for --import"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    argv: list[str],
    message: str,
    data_of: DataOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", *(word.format(data=data_of("scorer")) for word in argv)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_report_says_what_was_seen_and_what_comes_next(
    data_of: DataOf, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "dual_encoder", data_of("dual_encoder"), "-o", "new.yaml"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"images with 2\.0 captions each", output)
    assert re.search(r"max_text_length \d+ cuts 0\.0% of them", output)
    assert output.rstrip().endswith(
        "accel-train plan new.yaml\n  accel-train find-lr new.yaml\n  accel-train train new.yaml"
    )
