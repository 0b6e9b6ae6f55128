"""Configurations as rows: defaults, and what differs."""

from pathlib import Path

import pytest

from accel_train.config.load import ABSENT, load_config
from accel_train.tools.report.settings import NO_DEFAULT, differences, read_settings, rows_of, shown
from tests.short_runs import ROOT
from tests.tools.report.conftest import QUICKSTART, MakeRun

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_rows_hold_every_key_once_with_its_value(path: Path) -> None:
    from accel_train.config.load import leaves

    config = load_config(path)
    rows = {row.key: row.value for row in rows_of(config)}
    assert len(rows) == len(rows_of(config))
    expected = leaves(config.model_dump())
    assert {key: value for key, value in rows.items() if not isinstance(value, list | dict)}.items() <= expected.items()
    assert {key.split(".")[0] for key in rows} == {key.split(".")[0] for key in expected}


def test_defaults_are_told_from_what_was_set() -> None:
    rows = {row.key: row for row in rows_of(load_config(QUICKSTART, ["data.num_workers=2"]))}
    assert rows["data.num_workers"].is_default
    assert not rows["data.image_size"].is_default and rows["data.image_size"].default == 224
    assert rows["data.path"].default == NO_DEFAULT
    assert rows["optimizer.towers.image.layer_decay"].is_default
    assert not rows["optimizer.towers.image.lr"].is_default


def test_a_configuration_of_another_version_is_shown_as_it_is(make_run: MakeRun) -> None:
    path = make_run() / "config.yaml"
    path.write_text(path.read_text() + "\nno_such_key: 3\n")
    settings = read_settings(path)
    assert settings.config is None and "no_such_key" in settings.complaint
    assert settings.leaves["no_such_key"] == 3


def test_differences_leave_out_what_is_the_same_and_where_the_run_is() -> None:
    runs = [{"run_dir": "a", "lr": 1.0, "x": [1]}, {"run_dir": "b", "lr": 2.0, "x": [1], "extra": True}]
    assert differences(runs) == [("lr", [1.0, 2.0]), ("extra", [ABSENT, True])]
    assert differences(runs[:1]) == []


def test_values_are_written_as_in_yaml() -> None:
    assert [shown(value) for value in (None, True, 0.5, "x", [1, 2])] == ["null", "true", "0.5", "x", "[1, 2]"]
