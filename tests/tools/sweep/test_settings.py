from pathlib import Path

import pytest

from accel_train.config.load import load_config
from accel_train.errors import UserError
from accel_train.tools.sweep.settings import load_sweep, trial_config
from tests.tools.sweep.conftest import CONFIG, HILL


def refused(path=CONFIG, overrides=(), options=None, search=HILL) -> str:
    with pytest.raises(UserError) as error:
        load_sweep(str(path), list(overrides), options or {}, list(search))
    return str(error.value)


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_and_the_command_line_say_the_same(file):
    path = file(f"config: {CONFIG}\ntrials: 7\nsearch:\n  optimizer.towers.text.lr: log 1e-6 1e-1\n")
    from_file = load_sweep(str(path), [], {}, [])
    from_options = load_sweep(CONFIG, [], {"trials": 7}, ["optimizer.towers.text.lr=log 1e-6 1e-1"])
    assert from_file == from_options
    assert from_file.folder == Path(from_file.base.run_dir + "_sweep")


def test_the_command_line_replaces_what_the_file_says(file):
    path = file(f"config: {CONFIG}\ntrials: 7\nseed: 3\nsearch:\n  seed: int 0 5\n  data.num_workers: int 0 2\n")
    sweep = load_sweep(str(path), ["precision=bf16"], {"trials": 9}, ["seed=int 0 9"])
    assert (sweep.settings.trials, sweep.settings.seed, sweep.base.precision) == (9, 3, "bf16")
    assert sweep.settings.search == {"seed": "int 0 9", "data.num_workers": "int 0 2"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("search: {seed: int 0 5}", "Move this section there"),
        ("config: C\ntrails: 3\nsearch: {seed: int 0 5}", "trails: no such key (found 3). Nearest: trials."),
        ("config: C\ntrials: 0\nsearch: {seed: int 0 5}", "trials: found 0; it must be at least 1."),
        ("config: C\npruner: medain\nsearch: {seed: int 0 5}", "Nearest: median"),
        ("config: C\nsearch: {seed: 5}", "search.seed: found 5; it must be text."),
        ("config: C\nsearch: [seed]", "search: found ['seed']; it must be a section"),
        ("config: nothing.yaml\nsearch: {seed: int 0 5}", "nothing.yaml: can't be read"),
        ("config: C\nlaunch: acelerate launch\nsearch: {seed: int 0 5}", "no program 'acelerate' on PATH"),
        ("config: C\nlaunch: ''\nsearch: {seed: int 0 5}", "launch: found ''"),
        ('config: C\nlaunch: "\'"\nsearch: {seed: int 0 5}', "no command line"),
    ],
)
def test_a_wrong_file_is_said(file, text, said):
    assert said in refused(file(text.replace("config: C", f"config: {CONFIG}")), search=[])


def test_a_sweep_is_refused_where_a_configuration_is_wanted(file):
    path = file(f"config: {CONFIG}\nsearch: {{seed: int 0 5}}")
    with pytest.raises(UserError, match="accel-train sweep") as error:
        load_config(path)
    assert "whose `config` names the configuration" in str(error.value)


def test_nothing_to_search_is_said():
    assert "--search is not given" in refused(search=[])
    assert "--search 'seed': it is written key=form" in refused(search=["seed"])


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("optimizer.towers.txt.lr=log 1e-6 1", "optimizer.towers has no item 'txt'"),
        ("optimizer.towers.text.lr=uniform -1 1", "optimizer.towers.text.lr: found -1.0; it must be at least 0."),
        ("optimizer.towers.text.layer_decay=uniform 0.5 1.5", "it must be at most 1"),
        ("optimizer.momentums=uniform 0 1", "no such key (found 0.5). Nearest: optimizer.momentum."),
        ("optimizer.momentum=uniform 0 0.9", "would be ignored, since optimizer.name is adamw"),
        ("data.micro_batch_size=uniform 1 4", "it must be a whole number"),
        ("data.micro_batch_size=choice [8, 100000]", "100000 is more than data.global_batch_size"),
    ],
)
def test_keys_and_values_are_checked_before_the_first_trial(search, said):
    assert said in refused(search=[search])


def test_a_key_that_is_not_there_is_said_once():
    text = refused(search=["optimizer.towers.txt.lr=choice [1, 2, 3, 4]"])
    assert text.count("has no item") == 1


def test_what_would_be_ignored_is_refused():
    assert "searched" in refused(overrides=["optimizer.towers.text.lr=1"])
    assert "pruner: median would be ignored" in refused(overrides=["evaluation.evaluate_every=null"])
    assert "trials would have no score" in refused(
        overrides=["data.valid_split=null", "evaluation.best_score=null", "evaluation.evaluate_every=1 epoch"]
    )


def test_a_trials_configuration_has_its_values_and_nothing_else_changed(tmp_path):
    sweep = load_sweep(CONFIG, ["seed=4"], {"score": "image_to_text_recall@1"}, [*HILL, "data.num_workers=int 0 3"])
    values = {"optimizer.towers.text.lr": 2e-5, "optimizer.towers.text.layer_decay": 0.75, "data.num_workers": 3}
    config = trial_config(sweep, values, tmp_path / "trial")
    overrides = [f"{key}={value}" for key, value in values.items()]
    expected = load_config(
        CONFIG, ["seed=4", "evaluation.best_score=image_to_text_recall@1", f"run_dir={tmp_path / 'trial'}", *overrides]
    )
    assert config == expected
