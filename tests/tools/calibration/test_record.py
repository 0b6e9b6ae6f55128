"""The file of a calibration: written whole, read back, refused where it says nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from accel_train.errors import UserError
from accel_train.tools.calibration import measure
from accel_train.tools.calibration.record import (
    Calibration,
    Rates,
    calibration_path,
    read_calibration,
    seconds_at,
    this_machine,
    write_calibration,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def some() -> Calibration:
    curves = {"plain": [(1.0, 1e-6), (100.0, 1e-4)]}
    return Calibration(this_machine(), {"cpu/1": Rates(curves, 2e-6)}, {"2": {"all_reduce": [(64.0, 1e-5)]}})


def test_it_comes_back_as_it_was_written(cache: Path) -> None:
    path = write_calibration(some())
    assert path == calibration_path() == cache / "accel_train" / "calibration.json"
    assert read_calibration() == some()
    assert [item.name for item in path.parent.iterdir()] == ["calibration.json"]


def test_a_relative_cache_folder_is_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The XDG base directory specification has relative paths ignored."""
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert calibration_path() == Path.home() / ".cache" / "accel_train" / "calibration.json"


def test_none_yet(cache: Path) -> None:
    with pytest.raises(UserError, match=r"has not been measured. `accel-train bench CONFIG --calibrate`"):
        read_calibration()


@pytest.mark.parametrize(("key", "value"), [("torch", "1.0"), ("cpu", "another"), ("host", "elsewhere")])
def test_another_machine_is_refused(cache: Path, key: str, value: str) -> None:
    write_calibration(replace(some(), machine=this_machine() | {key: value}))
    with pytest.raises(UserError, match=f"was measured with {key} {value}, and this is"):
        read_calibration()


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found | {"format_version": 0},
        lambda found: found | {"rates": {"cpu/1": {"curves": {"plain": []}, "seconds_per_operation": 0}}},
        lambda found: found | {"rates": {"cpu/1": {"curves": {"plain": [[2, 1], [1, 1]]}, "seconds_per_operation": 0}}},
        lambda found: found | {"collectives": {"2": {"all_reduce": [[1, -1]]}}},
        lambda found: {"format_version": 3},
        lambda found: [found],
    ],
)
def test_what_can_not_be_used_is_named(cache: Path, damage: object) -> None:
    path = write_calibration(some())
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))  # type: ignore[operator]
    with pytest.raises(UserError, match=r"calibration.json can't be used"):
        read_calibration()


def test_a_folder_that_can_not_be_written(cache: Path) -> None:
    (cache / "accel_train").write_text("a file")
    with pytest.raises(UserError, match="XDG_CACHE_HOME names another folder"):
        write_calibration(some())


def test_between_and_beyond_the_measured_sizes() -> None:
    curve = [(10.0, 1.0), (1000.0, 10.0)]
    assert seconds_at(curve, 1) == 1.0  # never less than the smallest
    assert seconds_at(curve, 100) == pytest.approx(10**0.5)  # half way on logarithmic scales
    assert seconds_at(curve, 2000) == pytest.approx(20.0)  # in proportion


def test_measured_curves_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few and small sizes, so that it takes a moment; more work never takes less time."""
    monkeypatch.setattr(measure, "TIME_FOR_A_SIZE", 0.001)
    monkeypatch.setattr(measure, "NUMBERS", (256, 1024, 4096))
    monkeypatch.setattr(
        measure, "BY_DTYPE", {kind: (make, sizes[:2]) for kind, (make, sizes) in measure.BY_DTYPE.items()}
    )
    rates = measure.measure_rates(torch.device("cpu"))
    assert {"plain", "dear", "matmul/float32", "attention/bfloat16", "depthwise_backward/float16"} < set(rates.curves)
    for curve in rates.curves.values():
        sizes, seconds = zip(*curve, strict=True)
        assert list(sizes) == sorted(sizes) and list(seconds) == sorted(seconds) and seconds[0] > 0
    assert 0 < rates.seconds_per_operation < 1e-2
