import json

import optuna
import pytest
from optuna.trial import TrialState

from accel_train.errors import UserError
from accel_train.stopping import StopRequest
from accel_train.tools.sweep.locks import try_lock
from accel_train.tools.sweep.space import Choice
from accel_train.tools.sweep.study import JOURNAL, open_study, own_values, take_trial
from tests.tools.sweep.conftest import HILL

MIXED = [
    "optimizer.towers.text.lr=log 1e-6 1e-1",
    "optimizer.betas=choice [[0.9, 0.98], [0.9, 0.999]]",
    "seed=int 0 8 2",
]


@pytest.fixture
def take():
    """Takes a trial as a worker does; the locks are dropped at the end of the test."""
    claims = []

    def one(study, sweep):
        taken = take_trial(study, sweep, StopRequest())
        claims.append(taken and taken.claim)
        return taken

    yield one
    for claim in claims:
        if claim is not None and not claim._process.closed:
            claim.release()


def take_all(sweep) -> list[dict]:
    """Every trial's values, with a score that depends on them, without any process."""
    study = open_study(sweep)
    drawn = []
    while (taken := take_trial(study, sweep, StopRequest())) is not None:
        drawn.append(taken.values)
        study.tell(taken.trial, taken.values["optimizer.towers.text.lr"])
        taken.claim.release()
    return drawn


def test_values_lie_within_the_search(make_sweep):
    sweep = make_sweep(MIXED, trials=30)
    drawn = take_all(sweep)
    assert len(drawn) == 30
    for values in drawn:
        assert list(values) == list(sweep.space.searched)
        assert all(part.holds(values[key]) for key, part in sweep.space.searched.items())
    betas = sweep.space.searched["optimizer.betas"]
    assert isinstance(betas, Choice)
    assert {json.dumps(values["optimizer.betas"]) for values in drawn} == set(betas.texts())


def test_one_worker_draws_the_same_values_every_time(make_sweep, tmp_path):
    once = take_all(make_sweep(MIXED, trials=14, sweep_dir=str(tmp_path / "a")))
    assert take_all(make_sweep(MIXED, trials=14, sweep_dir=str(tmp_path / "b"))) == once
    assert take_all(make_sweep(MIXED, trials=14, sweep_dir=str(tmp_path / "c"), seed=1))[1:] != once[1:]


def test_sampling_learns(make_sweep):
    """The score is the rate itself, so later trials draw high ones."""
    rates = [values["optimizer.towers.text.lr"] for values in take_all(make_sweep(trials=40))]
    middle = 10**-3.5
    assert sum(rate > middle for rate in rates[20:]) >= 16


def test_the_first_trial_has_the_configurations_own_values(make_sweep):
    sweep = make_sweep(MIXED, trials=1)
    (first,) = take_all(sweep)
    towers = {tower.name: tower for tower in sweep.base.optimizer.towers}
    assert first == {
        "optimizer.towers.text.lr": towers["text"].lr,
        "optimizer.betas": sweep.base.optimizer.betas,
        "seed": sweep.base.seed,
    }


def test_values_of_their_own_outside_the_search_are_no_trial(make_sweep):
    assert own_values(make_sweep(["seed=int 1 9"])) is None
    assert own_values(make_sweep(["optimizer.towers.0.lr=uniform 0 1"])) is None  # by position, not by name


def test_a_trial_left_behind_is_taken_up_with_its_values(make_sweep, take):
    sweep = make_sweep(trials=3)
    study = open_study(sweep)
    first = take(study, sweep)
    second = take(open_study(sweep), sweep)
    assert (first.trial.number, second.trial.number) == (0, 1)
    first.claim.release()  # as if its worker had died
    again = take(open_study(sweep), sweep)
    assert (again.trial.number, again.is_new, again.values) == (0, False, first.values)
    third = take(study, sweep)
    assert third.trial.number == 2
    assert take(study, sweep) is None


def test_a_trial_left_before_its_values_were_drawn_gets_them(make_sweep, take):
    sweep = make_sweep(trials=2)
    study = open_study(sweep)
    study.ask()
    taken = take(study, sweep)
    assert (taken.trial.number, taken.is_new) == (0, False)
    assert list(taken.values) == list(sweep.space.searched)


def test_a_process_without_a_worker_is_waited_for_and_asked_to_stop(make_sweep, take, monkeypatch):
    sweep = make_sweep(trials=1)
    study = open_study(sweep)
    study.ask()
    folder = sweep.folder / "trials" / "0000"
    orphan = try_lock(folder / "sweep_process.lock")
    naps = []

    def nap(seconds: float) -> None:
        assert (folder / "STOP").exists()
        naps.append(seconds)
        if len(naps) == 3:
            orphan.close()

    monkeypatch.setattr("time.sleep", nap)
    taken = take(study, sweep)
    assert taken.trial.number == 0 and len(naps) == 3


def test_a_torn_line_of_the_journal_is_cut_off(make_sweep, take):
    sweep = make_sweep(trials=2)
    study = open_study(sweep)
    take(study, sweep).claim.release()
    journal = sweep.folder / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":5,"worker')
    taken = take(open_study(sweep), sweep)
    assert taken.trial.number == 0
    study.tell(taken.trial, 1.0)
    assert journal.read_bytes().startswith(whole + b'{"')
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
    assert open_study(sweep).trials[0].state is TrialState.COMPLETE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"pruner": "median"}, "pruner was 'none', is 'median'"),
        ({"score": "image_to_text_recall@1"}, "config.evaluation.best_score"),
        ({"search": [*HILL, "seed=int 0 5"]}, "search.seed was absent, is 'int 0 5'"),
        ({"search": HILL[:1]}, "layer_decay was 'uniform 0.5 1.0', is absent"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(make_sweep, change, said):
    open_study(make_sweep())
    with pytest.raises(UserError) as error:
        open_study(make_sweep(**change))
    assert said in str(error.value) and "choose another sweep_dir" in str(error.value)


def test_what_changes_no_result_may_change(make_sweep):
    open_study(make_sweep())
    open_study(make_sweep(trials=99, launch=None, max_failures=9, keep_checkpoints="all"))


def test_a_folder_that_holds_a_run_is_refused(make_sweep):
    sweep = make_sweep()
    sweep.folder.mkdir()
    (sweep.folder / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="holds something else than a sweep"):
        open_study(sweep)


def test_a_folder_that_cannot_be_made_is_said(make_sweep, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"sweep_dir: .* can't be used"):
        open_study(make_sweep(sweep_dir=str(tmp_path / "file" / "sweep")))


def test_optunas_own_reader_reads_the_journal(make_sweep):
    """Nothing ties a sweep to this program: `optuna` and its dashboard open the same file."""
    sweep = make_sweep(trials=3)
    take_all(sweep)
    backend = optuna.storages.journal.JournalFileBackend(str(sweep.folder / JOURNAL))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == 3
