import time
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console

from accel_train.progress import Meter, score_table, step_summary

CPU = torch.device("cpu")


def slow_items(count: int, seconds: float) -> Iterator[int]:
    for item in range(count):
        time.sleep(seconds)
        yield item


def test_meter_counts_samples_and_the_share_of_waiting() -> None:
    meter = Meter(CPU)
    for _ in meter.waiting_for(slow_items(4, 0.03)):
        time.sleep(0.03)
        meter.count(10)
    reading = meter.read()
    assert reading["samples_per_second"] == pytest.approx(40 / 0.24, rel=0.4)
    assert 0.3 < reading["waiting_for_data"] < 0.7
    assert 0.01 < reading["memory_gib"] < 1000


def test_each_reading_starts_afresh() -> None:
    meter = Meter(CPU)
    meter.count(1000)
    meter.read()
    time.sleep(0.01)
    assert meter.read()["samples_per_second"] == 0


def test_items_pass_through_until_they_end() -> None:
    assert list(Meter(CPU).waiting_for(iter([1, 0, 2]))) == [1, 0, 2]


def test_step_summary() -> None:
    values = {"loss": 1.23456, "grad_norm": 0.98765, "samples_per_second": 512.34, "waiting_for_data": 0.031}
    summary = step_summary(7, 100, 2, values)
    assert summary == "step 7/100  epoch 2  loss 1.2346  grad_norm 0.988  512.3 samples/s  waiting for data 3%"
    assert "temperature 0.0700" in step_summary(7, 100, 2, values | {"temperature": 0.07})


def test_score_table_has_a_row_for_each_direction() -> None:
    scores = {
        "text_to_image_recall@1": 0.125,
        "text_to_image_recall@5": 0.5,
        "text_to_image_mean_recall": 0.3125,
        "mean_recall": 0.4,
        "accuracy": 0.75,
    }
    title = "runs/small/multimodal_llm_phase2, best checkpoint (step 4) on valid, [4] wider than the table"
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(score_table(scores, title))
    rows = [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in capture.get().splitlines()
    ]
    assert rows[0] == [title]
    assert ["score, %", "R@1", "R@5", "mean recall", "value"] in rows
    assert ["text to image", "12.5", "50.0", "31.2", ""] in rows
    assert ["both ways", "", "", "40.0", ""] in rows
    assert ["accuracy", "", "", "", "75.0"] in rows
