"""The grammar of `--inject`: what it reads, and that it takes nothing else."""

import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.config.faults import KINDS, MOMENTS, SIGNALS, Fault, check_faults, read_faults
from accel_train.errors import UserError

EXAMPLE = "kill:rank=1@37,nan:rank=0@12,slow:rank=1:0.5s,torn-checkpoint@50,disk-full@60,unreadable-sample:17"


def test_every_kind_of_the_example() -> None:
    assert [(fault.kind, fault.rank, fault.step, fault.moment) for fault in read_faults(EXAMPLE)] == [
        ("kill", 1, 37, "step"),
        ("nan", 0, 12, "step"),
        ("slow", 1, None, "step"),
        ("torn-checkpoint", None, 50, "write"),
        ("disk-full", None, 60, "write"),
        ("unreadable-sample", None, None, "step"),
    ]
    assert read_faults(EXAMPLE)[2].seconds == 0.5
    assert read_faults(EXAMPLE)[5].row == 17


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_a_kind_is_one(kind: str) -> None:
    (fault,) = read_faults(KINDS[kind].example)
    assert fault.kind == kind
    assert fault.text == KINDS[kind].example


def test_order_of_parts_and_spaces_do_not_matter() -> None:
    first, second = read_faults("signal:TERM:rank=1@5, signal:rank=1:TERM@5")
    assert (first.to_send, first.rank, first.step) == (second.to_send, second.rank, second.step)
    assert first.to_send is signal.SIGTERM


@pytest.mark.parametrize("moment", MOMENTS)
def test_every_moment_can_be_chosen(moment: str) -> None:
    assert read_faults(f"kill:rank=0:at={moment}@3")[0].moment == moment


def test_all_ranks() -> None:
    assert read_faults("kill:rank=all@3")[0].rank is None
    assert read_faults("disk-full:rank=1@3")[0].rank == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "a fault is written KIND"),
        ("kill:rank=1@3,", "a fault is written KIND"),
        ("kill rank=1@3", "a fault is written KIND"),
        ("kill:rank=1@-3", "a fault is written KIND"),
        ("kill:rank=1@3@4", "a fault is written KIND"),
        ("kil:rank=1@3", "no kind is called 'kil'. Nearest: kill"),
        ("meteor@3", "no kind is called 'meteor'. They are kill, signal"),
        ("kill:rank=1", "its step is missing; write for example kill:rank=1@37"),
        ("kill@3", "its rank is missing"),
        ("slow:rank=1", "its value is missing"),
        ("unreadable-sample", "its value is missing"),
        ("slow:rank=1:0.5s@3", "slow takes no step"),
        ("kill:TERM:rank=1@3", "kill takes no value"),
        ("corrupt-checkpoint:rank=1@3", "corrupt-checkpoint takes no rank"),
        ("nan:rank=0:at=write@3", "nan takes no at"),
        ("kill:rank=one@3", "rank is 'one'; it must be a number or all"),
        ("kill:rank=1:rank=0@3", "its rank is given twice"),
        ("kill:rank=1:when=now@3", "'when' is none of rank and at"),
        ("kill:rank=1:at=noon@3", "no moment is called 'noon'; they are step"),
        ("kill:rank=1:at=publish@3", "at=publish is on rank 0 alone; write rank=0"),
        ("kill:rank=all:at=prune@3", "at=prune is on rank 0 alone; write rank=0"),
        ("kill:rank=1@0", "steps are counted from 1"),
        ("signal:KILL:rank=1@3", "'KILL' is none of the signals TERM, INT, USR1"),
        ("slow:rank=1:0.5", "'0.5' is no time; write for example 0.5s"),
        ("slow:rank=1:nans", "'nans' is no time"),
        ("unreadable-sample:x", "'x' is no row"),
        ("kill:rank=1@3,kill:rank=1@3", "it is given twice"),
    ],
)
def test_what_is_wrong_is_said(text: str, complaint: str) -> None:
    with pytest.raises(UserError) as found:
        read_faults(text)
    assert str(found.value).startswith("--inject '")
    assert complaint in str(found.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kill:rank=2@3", "there is no rank 2; ranks are 0 to 1"),
        ("kill:rank=1@17", "the run ends at step 16"),
        ("unreadable-sample:36", "rows are 0 to 35"),
        ("kill-worker:rank=0@3", "data.num_workers is 0"),
    ],
)
def test_what_a_run_can_never_meet_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_faults(read_faults(text), world_size=2, total_steps=16, num_rows=36, num_workers=0)


def test_what_a_run_can_meet_is_let_through() -> None:
    text = "kill:rank=1@16,unreadable-sample:35,kill-worker:rank=0@3,kill:rank=0:at=start@0"
    check_faults(read_faults(text), world_size=2, total_steps=16, num_rows=36, num_workers=1)


@given(st.text(alphabet="kilnasowdufret-:=@,.0123456789 \n\u0663", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        faults = read_faults(text)
    except UserError:
        return
    assert all(isinstance(fault, Fault) and fault.kind in KINDS for fault in faults)
    assert read_faults(",".join(fault.text for fault in faults)) == faults


def test_signals_are_those_that_a_run_listens_to() -> None:
    assert [number.name for number in SIGNALS.values()] == [f"SIG{name}" for name in SIGNALS]


def test_a_mistake_is_said_before_torch_is_imported() -> None:
    script = (
        "import sys; from accel_train.cli import main; "
        "code = main(['train', 'nowhere.yaml', '--inject', 'kil:rank=1@3']); sys.exit(code + 10 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("accel-train: --inject 'kil:rank=1@3': no kind is called 'kil'. Nearest: kill.")
