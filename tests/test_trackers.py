"""Trackers are chosen by one key, get what metrics.jsonl gets, and an unknown one stops the run before it starts."""

from pathlib import Path

import pytest

from tests.short_runs import ROOT, metrics, train

CONFIG = ROOT / "configs" / "small" / "dual_encoder_one_lr.yaml"
SECRETS = {name: f"a-secret-of-{name}" for name in ("WANDB_API_KEY", "HF_TOKEN", "SLURM_JWT", "COMET_API_KEY")}
"""What the environment holds and nothing that is written may hold."""
SHORT = [
    "num_epochs=null",
    "max_steps=2",
    "data.global_batch_size=8",
    "data.micro_batch_size=8",
    "data.num_workers=0",
    "data.image_size=32",
    "evaluation.at_start=false",
    "evaluation.evaluate_every=null",
    "log.log_every=1 step",
]


@pytest.mark.slow
def test_tensorboard_gets_what_the_metrics_file_gets(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = train(CONFIG, tmp_path / "run", *SHORT, "log.trackers=[tensorboard]", environment=SECRETS)
    assert done.returncode == 0, done.stdout + done.stderr
    written = {str(path): path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"config.yaml", "run.log", "state.json"} <= {Path(name).name for name in written}
    for name, content in written.items() | {("output", (done.stdout + done.stderr).encode())}:
        assert not [key for key, secret in SECRETS.items() if secret.encode() in content], name
    files = list((tmp_path / "run").rglob("events.out.tfevents.*"))
    (events,) = (
        found
        for folder in {file.parent for file in files}
        if "train/loss" in (found := EventAccumulator(str(folder)).Reload()).Tags()["scalars"]
    )
    for name in ("loss", "grad_norm", "lr/image", "temperature"):
        wanted = [row[name] for row in metrics(tmp_path / "run", "train")]
        assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx(wanted)


def test_unknown_tracker_stops_the_run(tmp_path: Path) -> None:
    done = train(CONFIG, tmp_path / "run", *SHORT, "log.trackers=[tensorbord]")
    assert done.returncode == 2
    assert "log.trackers: 'tensorbord' is not installed or not known" in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()
