"""Every hazard at a configuration that has it, and none at those that are shipped."""

from pathlib import Path

import numpy as np
import pytest

from accel_train.config.load import load_config
from accel_train.data.duplicates import chance_of_a_duplicate
from accel_train.tools.plan.run_plan import RunPlan, make_plan
from tests.small_data import data_for

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = str(CONFIGS / "small" / "dual_encoder_llrd.yaml")
OWN = str(CONFIGS / "small" / "chinese_clip.yaml")
SHIPPED = sorted(
    str(path.relative_to(CONFIGS)) for path in [*CONFIGS.glob("small/*.yaml"), CONFIGS / "quickstart.yaml"]
)
OF_MADE_UP_DATA = (
    "samples are left out of each epoch",
    "An epoch is only",
    "evaluation.early_stopping waits",
    "log_every is",
)
"""What a dataset of a dozen rows, made for tests, brings with it."""
REALLY_SO = "small/chinese_clip.yaml"
"""Takes each row's own caption alone as its positive, as the original does, on captions of which many are equal."""


def planned(path: str, *overrides: str) -> RunPlan:
    return make_plan(load_config(path, list(overrides)))


@pytest.mark.parametrize(
    ("overrides", "message", "remedy"),
    [
        (
            ["schedule.warmup_ratio=null", "schedule.warmup_steps=500"],
            "warmup takes 500 steps and the run 360",
            "Shorten",
        ),
        (["schedule.warmup_ratio=0.6"], "warmup takes 216 of 360", "train longer"),
        (
            ["engine=zero2", "model.text.config.num_hidden_layers=4"],
            "communicates for each group apart",
            "fsdp2 and ddp",
        ),
        (["data.global_batch_size=4096"], "1720 of 5816 samples are left out", "last_batch: keep"),
        (["data.global_batch_size=2048"], "only 2 steps long", "smaller data.global_batch_size"),
        (["evaluation.evaluate_every=900 steps"], "evaluate_every is 900 steps, and the run has 360", "36 steps"),
        (["checkpoint.save_every=9 epochs"], "save_every is 9 epochs, and the run has 360", "36 steps"),
        (
            ["evaluation.early_stopping={patience: 5}"],
            "waits for 5 evaluations without a gain, one every 90 steps, and the run has 360",
            "Evaluate more often",
        ),
        (
            ["optimizer.lr_scaling={rule: linear, base_batch_size: 8}"],
            "chosen at a batch of 8, and 128 is far from it",
            "find-lr",
        ),
    ],
)
def test_hazards(overrides: list[str], message: str, remedy: str) -> None:
    said = [line for line in planned(SMALL, *overrides).hazards if message in line]
    assert len(said) == 1 and remedy in said[0]


def test_notes() -> None:
    frozen = planned(SMALL, "optimizer.towers.text.lr=0", "data.micro_batch_size=64")
    assert any("Tower text is frozen as a whole" in note for note in frozen.notes)
    assert any("2 micro-batches on a rank; 1 of them is encoded twice" in note for note in frozen.notes)
    kept = planned(SMALL, "data.micro_batch_size=64", "compute.kept_graphs=2")
    assert not any("encoded twice" in note for note in kept.notes)
    assert frozen.hazards == []


def test_false_negatives_of_a_large_batch() -> None:
    large = ["data.global_batch_size=1024"]
    said = [line for line in planned(OWN, *large).hazards if "false negative" in line]
    assert len(said) == 1 and "loss.positives: shared" in said[0]
    shared = planned(OWN, *large, "loss.positives=shared").hazards
    assert not [line for line in shared if "false negative" in line]


def test_the_chance_of_a_duplicate_is_that_of_all_pairs_counted() -> None:
    generator = np.random.default_rng(0)
    keys = [generator.integers(0, high, 60) for high in (5, 20, 8)]
    equal = sum(
        any(key[first] == key[second] for key in keys) for first in range(60) for second in range(first + 1, 60)
    )
    assert chance_of_a_duplicate(*keys) == pytest.approx(equal / (60 * 59 / 2))
    assert chance_of_a_duplicate(keys[0][:1]) == 0.0


@pytest.mark.parametrize("path", SHIPPED)
def test_no_false_alarm(path: str, tmp_path: Path) -> None:
    data = data_for(CONFIGS / path, tmp_path)
    made_up = "data.path=sample:emoji-zh" not in data
    few = ["data.global_batch_size=8", "data.micro_batch_size=8"] if made_up else []
    found = planned(str(CONFIGS / path), *data, *few).hazards
    if path == REALLY_SO:
        assert "20% of the rows have a false negative" in found.pop(0)
    assert [line for line in found if not (made_up and any(words in line for words in OF_MADE_UP_DATA))] == []
