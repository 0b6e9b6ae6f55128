import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.config.key_names import all_keys
from accel_train.config.load import ABSENT, config_changes, dump_config, load_config
from accel_train.config.schema import RunConfig
from accel_train.config.yaml_text import write_yaml
from accel_train.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
Load = Callable[..., RunConfig]


def test_values_and_defaults(load: Load) -> None:
    config = load("optimizer.towers.rest.lr=2", "data.augmentation.crop_scale=[0.9, 1]")
    assert config.model.type == "clip"
    assert [tower.lr for tower in config.optimizer.towers] == [1e-4, 2.0]
    assert config.data.augmentation.crop_scale == [0.9, 1.0]
    assert config.optimizer.betas == [0.9, 0.98]
    assert config.seed == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_configuration_loads(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    written = tmp_path / "written.yaml"
    written.write_text(dump_config(config), encoding="utf-8")
    assert load_config(written) == config


def test_ctrl_c_waits_for_the_end_of_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydantic drops an exception out of a signal at some places, and at others takes it for a wrong value."""
    checked = []

    class Interrupting:
        def match(self, interval: str) -> bool:
            if not checked:
                signal.raise_signal(signal.SIGINT)
            checked.append(interval)
            return True

    monkeypatch.setattr("accel_train.config.schema.INTERVAL", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        load_config(CONFIGS / "quickstart.yaml")
    assert len(checked) == 3, "evaluate_every, save_every and log_every"


def test_there_are_configurations() -> None:
    assert (CONFIGS / "quickstart.yaml").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"# nothing\n", "the file is empty"),
        (b"- a\n- b\n", "found a list; a configuration is a mapping"),
        (b"just text", "found a str; a configuration is a mapping"),
        (b"a: 1\nb: \xff\n", "line 2 is not UTF-8"),
        ("run_dir: 中".encode("utf-16"), "line 1 is not UTF-8"),
        (b"a: 1\na: 2\n", "not valid YAML: line 2, column 1: key 'a' is given twice, first in line 1"),
        (b"a: [1\n", "not valid YAML: line 2, column 1"),
    ],
)
def test_files_that_are_no_configuration(content: bytes, problem: str, load_text: Load) -> None:
    with pytest.raises(UserError) as caught:
        load_text(content)
    assert problem in str(caught.value)
    assert "config.yaml: " in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        load_config(tmp_path)


def test_a_byte_order_mark_is_skipped(valid_file: Path, load_text: Load) -> None:
    assert load_text(b"\xef\xbb\xbf" + valid_file.read_bytes()) == load_config(valid_file)


def test_dump_is_complete_and_round_trips(load: Load, load_text: Load) -> None:
    config = load(
        "optimizer.name=sgd",
        "optimizer.momentum=0.9",
        "schedule={name: step, step_every: 2 epochs, step_factor: 0.5, warmup_ratio: 0.1}",
        "model.config={text_config: {vocab_size: 500, x: [1, a, null, {'yes': 1e-05}]}}",
        "run_dir='runs/表情: #1'",
        "evaluation.early_stopping.patience=3",
    )
    text = dump_config(config)
    assert load_text(text) == config
    assert {line.split(":")[0].strip() for line in text.splitlines()} >= {"chunk_size", "keep_last", "num_epochs"}


def test_changes_between_two_configurations(load: Load) -> None:
    old = load()
    new = load(
        "seed=3",
        "optimizer.towers=[{name: rest, layers: ['.'], lr: 1e-3}, {name: heads, layers: [p], lr: 1}]",
        "data.augmentation.crop_scale=[0.5, 1]",
        "evaluation.early_stopping.patience=2",
    )
    changes = {path: (was, now) for path, was, now in config_changes(old, new)}
    assert changes["seed"] == (0, 3)
    assert changes["optimizer.towers.text.lr"] == (1e-4, ABSENT)
    assert changes["optimizer.towers.heads.lr"] == (ABSENT, 1.0)
    assert changes["data.augmentation.crop_scale"] == (None, [0.5, 1.0])
    assert changes["evaluation.early_stopping"] == (None, ABSENT)
    assert changes["evaluation.early_stopping.patience"] == (ABSENT, 2)
    assert not [path for path in changes if "towers.rest" in path]  # only its position changed
    assert config_changes(old, old.model_dump()) == []


# Fuzzing: any text, and any values under the keys that there are, give a configuration or a UserError.

PATHS = sorted(path.replace("*", "0") for path in all_keys(ContrastiveConfig))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "type", "lr", "x"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(st.dictionaries(st.sampled_from(PATHS), anything, min_size=1, max_size=4))
def test_no_value_breaks_the_checks(valid_file: Path, changes: dict[str, Any]) -> None:
    overrides = [f"{path}={write_yaml(value)}" for path, value in changes.items()]
    try:
        config = load_config(valid_file, overrides)
    except UserError as error:
        _, *lines = str(error).splitlines()
        assert lines and all(line.startswith("  ") and ": " in line for line in lines)
    else:
        assert load_config(valid_file, overrides) == config


@fuzz
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_break_the_reader(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError):
        load_config(path)


@fuzz
@given(st.lists(st.text(max_size=20), max_size=3))
def test_no_override_breaks_the_reader(valid_file: Path, overrides: list[str]) -> None:
    try:
        load_config(valid_file, overrides)
    except UserError:
        pass
    else:
        assert not overrides


@pytest.mark.parametrize(("written", "advice"), [("on", "on"), ("off", "off"), ("true", "on"), ("false", "off")])
def test_a_switch_may_have_been_through_another_yaml_writer(written: str, advice: str, load: Load) -> None:
    assert load(f"advice={written}").advice == advice


def test_each_mistake_is_a_line_whatever_its_key_holds(valid_file: Path) -> None:
    with pytest.raises(UserError) as failure:
        load_config(valid_file, [r'data.augmentation={"a\rb": 1, "c\u2028d": 2}'])
    _, *lines = str(failure.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        r"  data.augmentation.a\rb",
        r"  data.augmentation.c\u2028d",
    ]
