"""What only a CUDA device can show: every engine and precision over NCCL, against the same run on the CPU."""

from pathlib import Path

import pytest

from tests.short_runs import ROOT, metrics, train

CONFIG = ROOT / "configs" / "small" / "dual_encoder_one_lr.yaml"
STEPS = 4
SETTINGS = [
    "num_epochs=null",
    f"max_steps={STEPS}",
    "schedule.warmup_ratio=null",
    "schedule.name=constant",
    "schedule.min_lr_ratio=0.0",
    "data.global_batch_size=64",
    "data.micro_batch_size=16",
    "data.num_workers=1",
    "evaluation.evaluate_every=null",
    "checkpoint.save_every=2 steps",
    "log.log_every=1 step",
]
NO_DROPOUT = ["model.text.config.hidden_dropout_prob=0.0", "model.text.config.attention_probs_dropout_prob=0.0"]


def losses(run_dir: Path, *overrides: str, visible: str | None = None) -> list[float]:
    """The loss at every step of a short run in a process of its own."""
    if any(word.startswith("engine=zero") for word in overrides):
        pytest.importorskip("deepspeed")
    settings = {word.partition("=")[0]: word for word in [*SETTINGS, *overrides]}
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    done = train(CONFIG, run_dir, *settings.values(), environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [row["loss"] for row in metrics(run_dir, "train")]


@pytest.fixture(scope="module")
def cpu_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(tmp_path_factory.mktemp("cpu") / "run", *NO_DROPOUT, visible="")


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_float32_on_cuda_equals_the_cpu(engine: str, cpu_losses: list[float], tmp_path: Path) -> None:
    assert losses(tmp_path / "run", *NO_DROPOUT, f"engine={engine}") == pytest.approx(cpu_losses, abs=2e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_engines_agree_in_half_precision(engine: str, precision: str, tmp_path: Path) -> None:
    wanted = losses(tmp_path / "ddp", "engine=ddp", f"precision={precision}")
    found = losses(tmp_path / engine, f"engine={engine}", f"precision={precision}")
    # Of a loss of 4.3. ZeRO-3 multiplies for a weight's gradient in another orientation, and bf16 keeps 8 bits of it.
    assert found == pytest.approx(wanted, abs=1e-3 if (engine, precision) == ("zero3", "bf16") else 1e-4)


@pytest.mark.parametrize("option", ["compute.compile=true", "compute.activation_checkpointing=true"])
def test_compute_options_do_not_change_the_result(option: str, tmp_path: Path) -> None:
    wanted = losses(tmp_path / "plain", *NO_DROPOUT)
    assert losses(tmp_path / "with", *NO_DROPOUT, option) == pytest.approx(wanted, abs=1e-3)


def test_fast_dropout_is_replayed_under_activation_checkpointing(tmp_path: Path) -> None:
    wanted = losses(tmp_path / "plain")
    assert losses(tmp_path / "with", "compute.activation_checkpointing=true") == pytest.approx(wanted, abs=1e-3)


def test_per_sample_dropout_does_not_see_the_split(tmp_path: Path) -> None:
    whole = losses(tmp_path / "whole", "dropout=per_sample", "data.micro_batch_size=64")
    assert losses(tmp_path / "cut", "dropout=per_sample") == pytest.approx(whole, abs=1e-3)
