"""Short runs of the program itself: every shipped small configuration trains, and what a run keeps and refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accel_train.config.load import load_config
from tests.faults.conftest import ForkServer, Ranks
from tests.short_runs import ROOT, metrics, train
from tests.small_data import data_for

SMALL = [ROOT / "configs" / "quickstart.yaml", *sorted((ROOT / "configs" / "small").glob("*.yaml"))]
SHORT = ["num_epochs=null", "data.num_workers=0", "data.global_batch_size=8", "data.micro_batch_size=4"]
NO_EVALUATION = ["evaluation.at_start=false", "evaluation.evaluate_every=null"]

FIRST_SCORE = {"multimodal_llm": "token_accuracy", "scorer": "loss", "sequence_classification": "accuracy"}

# In one worker of pytest-xdist, for which one server of forks is enough.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("training")]

Finish = Callable[..., str]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    running = ForkServer()
    yield running
    running.close()


@pytest.fixture
def finish(server: ForkServer) -> Finish:
    """finish(config, run_dir, *overrides): `accel-train train`, which must end with exit code 0; returns what it printed."""

    def run(config: Path, run_dir: Path, *overrides: str) -> str:
        output = run_dir.with_name(f"{run_dir.name} says")
        output.mkdir(exist_ok=True)
        argv = ["train", str(config), f"run_dir={run_dir}", *overrides]
        running = Ranks(server, server.start({"argv": argv, "output": str(output), "folder": str(ROOT)}), output)
        codes = running.wait(240)
        assert codes == [0], running.output
        return running.output

    return run


@pytest.mark.parametrize("config", SMALL, ids=lambda path: path.stem)
def test_every_small_configuration_trains(config: Path, tmp_path: Path, finish: Finish) -> None:
    phases = [f"phases.{phase.name}.start={2 * n} steps" for n, phase in enumerate(load_config(config).phases, 1)]
    settings = [*data_for(config, tmp_path), *SHORT, *phases, "max_steps=6", "log.log_every=1 step", *NO_EVALUATION]
    finish(config, tmp_path / "run", *settings, "evaluation.early_stopping=null")
    losses = [row["loss"] for row in metrics(tmp_path / "run", "train")]
    assert len(losses) == 6
    assert all(0 < loss < 30 for loss in losses)
    (scores,) = metrics(tmp_path / "run", "valid")
    assert 0 < scores[FIRST_SCORE.get(load_config(config).task, "mean_recall")] < 1
    assert (tmp_path / "run" / "checkpoints" / "step_00000006" / "state.json").is_file()


def test_the_best_step_is_kept_though_no_save_is_due(tmp_path: Path, finish: Finish) -> None:
    run_dir = tmp_path / "run"
    settings = [
        "max_steps=6",
        "evaluation.evaluate_every=1 step",
        "checkpoint.save_every=4 steps",
        "checkpoint.keep_last=1",
    ]
    output = finish(SMALL[0], run_dir, *SHORT, *settings, "evaluation.at_start=false")
    scores = {int(row["step"]): row["text_to_image_mean_recall"] for row in metrics(run_dir, "valid")}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert (run_dir / "checkpoints" / "best").resolve().name == f"step_{best:08d}"
    assert f"best text_to_image_mean_recall {scores[best]:.4f} at step {best}" in output


def test_sorting_by_length_changes_no_loss_but_the_padding(tmp_path: Path, finish: Finish) -> None:
    config = ROOT / "configs" / "small" / "dual_encoder_one_lr.yaml"
    towers = (f"model.text.config.{name}_dropout_prob=0.0" for name in ("hidden", "attention_probs"))
    settings = [
        *SHORT,
        *NO_EVALUATION,
        *towers,
        "max_steps=4",
        "log.log_every=1 step",
        "evaluation.early_stopping=null",
    ]
    losses = {}
    for name in ("false", "true"):
        finish(config, tmp_path / name, *settings, f"data.sort_by_length={name}")
        losses[name] = [row["loss"] for row in metrics(tmp_path / name, "train")]
    assert losses["true"] == pytest.approx(losses["false"], abs=1e-4)
    assert losses["true"] != losses["false"], "another order sums with another rounding"


def test_going_on_in_fp16_starts_with_a_loss_scale(tmp_path: Path, finish: Finish) -> None:
    run_dir = tmp_path / "run"
    settings = ["log.log_every=1 step", *NO_EVALUATION]
    finish(SMALL[0], run_dir, *SHORT, "max_steps=1", *settings)
    output = finish(SMALL[0], run_dir, *SHORT, "max_steps=2", "precision=fp16", *settings)
    assert "precision was 'fp32', is 'fp16'" in output
    assert metrics(run_dir, "train")[-1]["loss_scale"] > 1000


def test_a_split_that_is_not_there_stops_the_run_before_its_first_step(tmp_path: Path) -> None:
    done = train(SMALL[0], tmp_path / "run", *SHORT, "max_steps=2", "data.valid_split=val", "evaluation.at_start=false")
    assert done.returncode == 2
    assert "no split 'val'; it has train, valid" in done.stderr
    assert "step 1" not in done.stdout


def test_a_folder_with_metrics_is_not_fresh(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n', encoding="utf-8")
    done = train(SMALL[0], run_dir, *SHORT, "max_steps=2", "--fresh")
    assert done.returncode == 2
    assert "holds a run and --fresh was given" in done.stderr
    assert len(metrics(run_dir, "train")) == 1


def test_a_classifier_beats_the_largest_class(tmp_path: Path, finish: Finish) -> None:
    """Eight epochs on made-up texts whose words tell the class; a third of them are right by chance."""
    config = ROOT / "configs" / "small" / "sequence_classification.yaml"
    settings = [*data_for(config, tmp_path), "num_epochs=8", "data.global_batch_size=15", "data.micro_batch_size=15"]
    finish(config, tmp_path / "run", *settings, "model.config.hidden_size=32", "compute.num_threads=1")
    scores = metrics(tmp_path / "run", "valid")
    assert scores[0]["accuracy"] < 0.6
    assert scores[-1]["accuracy"] > 0.8
    assert scores[-1]["macro_f1"] > 0.8
    assert scores[-1]["loss"] < scores[0]["loss"]


def test_two_phases_beat_chance_and_a_decoder_that_is_deaf_and_blind(tmp_path: Path, finish: Finish) -> None:
    """On made-up squares and tones. Chance is 25 % of recall: one of 12 images, and five of 12."""
    small = ROOT / "configs" / "small"
    first, second = small / "multimodal_llm_phase1.yaml", small / "multimodal_llm_from_scratch.yaml"
    data = [
        *data_for(first, tmp_path),
        "data.global_batch_size=24",
        "data.micro_batch_size=24",
        "compute.num_threads=1",
    ]
    finish(first, tmp_path / "first", *data, "num_epochs=12", "evaluation.evaluate_every=null")
    before, after = metrics(tmp_path / "first", "valid")
    assert before["mean_recall"] < 0.4
    assert after["mean_recall"] > 0.7
    settings = [*data, "num_epochs=12", "evaluation.evaluate_every=null"]
    finish(second, tmp_path / "second", *settings, f"initialize_from={tmp_path / 'first'}")
    alone = small / "multimodal_llm_language_model.yaml"
    finish(alone, tmp_path / "alone", *settings)
    found, deaf = (metrics(tmp_path / name, "valid")[-1] for name in ("second", "alone"))
    assert found["token_accuracy"] > deaf["token_accuracy"] + 0.1
    assert found["loss"] < deaf["loss"]
    written = (tmp_path / "second" / "predictions" / "valid.csv").read_text(encoding="utf-8").splitlines()
    assert written[0] == "image_id,audio_id,caption,written,loss"
    assert len(written) == 13
