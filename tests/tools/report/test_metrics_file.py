"""metrics.jsonl as columns: the same values as json gives, whatever is torn or damaged in the file."""

import json
from pathlib import Path

import numpy as np
import pytest

from accel_train.errors import UserError
from accel_train.tools.report import metrics_file
from accel_train.tools.report.metrics_file import read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def rows(count: int) -> list[dict[str, object]]:
    draw = np.random.default_rng(0)
    found: list[dict[str, object]] = []
    for step in range(1, count + 1):
        found.append({"step": step, "split": "train", "loss": float(draw.normal()), "whole": step})
        if step % 7 == 0:
            found[-1]["save_seconds"] = 0.5
            found.append({"step": step, "split": "valid", "recall": step / count})
    return found


@pytest.mark.parametrize("block_bytes", [64, 1000, 2**23])
def test_columns_hold_what_the_lines_hold(path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(metrics_file, "BLOCK_BYTES", block_bytes)
    written = rows(200)
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    metrics = read_metrics(path)
    for split in ("train", "valid"):
        own = [row for row in written if row["split"] == split]
        assert metrics.split(split).steps.tolist() == [row["step"] for row in own]
        for name, values in metrics.split(split).columns.items():
            expected = [row.get(name, np.nan) for row in own]
            np.testing.assert_array_equal(values, np.array(expected, float))
    steps, seconds = metrics.split("train").given("save_seconds")
    assert steps.tolist() == list(range(7, 201, 7)) and set(seconds) == {0.5}
    assert metrics.num_lines == len(written) and not metrics.damaged and not metrics.is_unfinished


def test_a_last_line_that_is_being_written_is_no_damage(path: Path) -> None:
    path.write_text('{"step": 1, "split": "train", "loss": 2.0}\n{"step": 2, "split": "train", "lo')
    metrics = read_metrics(path)
    assert metrics.split("train").steps.tolist() == [1]
    assert metrics.is_unfinished and not metrics.damaged


def test_a_whole_last_line_without_its_end_counts(path: Path) -> None:
    path.write_text('{"step": 1, "split": "train", "loss": 2.0}\n{"step": 2, "split": "train", "loss": 1.0}')
    assert read_metrics(path).split("train").steps.tolist() == [1, 2]


BAD = [
    '{"step": 2, "split": "tr\x00',
    "",
    "[]",
    "7",
    '{"step": "2", "split": "train"}',
    '{"step": 2}',
    '{"split": "train", "loss": 1}',
    '{"step": 2.5, "split": "train", "loss": 1}',
    '{"step": -1, "split": "train", "loss": 1}',
    '{"step": 1e400, "split": "train", "loss": 1}',
    '{"step": 2, "split": "train"}{"step": 3, "split": "train"}',
    "[" * 20_000,
    "\udcff",
]


@pytest.mark.parametrize("bad", BAD)
def test_damaged_lines_are_left_out_and_named(path: Path, bad: str) -> None:
    first, last = (f'{{"step": {step}, "split": "train", "loss": 2.0}}\n' for step in (1, 3))
    path.write_text(first + bad + "\n" + last, errors="surrogateescape")
    metrics = read_metrics(path)
    assert metrics.split("train").steps.tolist() == [1, 3]
    assert metrics.damaged == [2]
    assert "line 2 of 3 can't be read" in metrics.complaint(path)


@pytest.mark.parametrize("value", ['"text"', "null", "true", "[1]", '{"a": 1}'])
def test_a_value_that_is_no_number_is_left_out_alone(path: Path, value: str) -> None:
    path.write_text(
        f'{{"step": 1, "split": "train", "loss": 2.0, "odd": {value}}}\n{{"step": 2, "split": "train", "loss": 1.0}}\n'
    )
    metrics = read_metrics(path)
    assert metrics.split("train").given("loss")[1].tolist() == [2.0, 1.0]
    assert not len(metrics.split("train").given("odd")[0])


def test_infinite_values_are_kept(path: Path) -> None:
    path.write_text('{"step": 1, "split": "train", "grad_norm": Infinity, "loss": NaN}\n')
    assert read_metrics(path).split("train").given("grad_norm")[1].tolist() == [np.inf]


def test_lines_in_another_order_are_put_in_order(path: Path) -> None:
    path.write_text("".join(f'{{"step": {step}, "split": "train", "loss": {step}}}\n' for step in (3, 1, 2)))
    assert read_metrics(path).split("train").given("loss")[1].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "words"), [("", "holds no metrics yet"), ("x\n", "line 1 of 1 can't be read"), ("{", "holds no")]
)
def test_a_file_without_metrics_is_one_clear_message(path: Path, content: str, words: str) -> None:
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_metrics(path)


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(UserError, match="can't be read: No such file"):
        read_metrics(path)
