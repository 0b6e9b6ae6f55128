"""Which configuration class a task's name leads to."""

import sys
from pathlib import Path

import pytest

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.config.tasks import BUILT_IN, config_class
from accel_train.tasks.build import TASKS

OWN_TASK = """
from accel_train.config.schema import RunConfig


class MyConfig(RunConfig):
    margin: float


class MyTask:
    config_class = MyConfig
"""


def test_every_built_in_task_has_the_configuration_that_it_declares() -> None:
    assert {name: task.config_class for name, task in TASKS.items()} == BUILT_IN


def test_without_a_name_it_is_contrastive() -> None:
    assert config_class({}) is ContrastiveConfig


def test_a_class_in_the_folder_one_works_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_task.py").write_text(OWN_TASK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    found = config_class({"task": "my_own_task:MyTask"})
    assert "margin" in found.model_fields


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("scorers", "it must be one of contrastive"),
        (3, "found 3"),
        ("nowhere.to_be_found:Task", "there is no module nowhere, neither installed nor in"),
        ("json:Task", "json has no task class Task"),
        ("json:JSONDecoder", "json has no task class JSONDecoder"),
    ],
)
def test_a_name_that_leads_nowhere(task: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class({"task": task})
