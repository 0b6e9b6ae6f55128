import math
from collections.abc import Callable
from pathlib import Path

import pytest

from accel_train.errors import UserError
from accel_train.tools.slurm import checks
from accel_train.tools.slurm.checks import check_partition, check_run_dir, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90 * 60),
        ("90:30", 90 * 60 + 30),
        ("12:00:00", 12 * 3600),
        ("2-0", 2 * 86400),
        ("1-6:30", 86400 + 6 * 3600 + 30 * 60),
        ("1-06:30:15", 86400 + 6 * 3600 + 30 * 60 + 15),
        ("infinite", math.inf),
        ("UNLIMITED", math.inf),
    ],
)
def test_times_as_slurm_writes_them(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "12h", "1:2:3:4", "-5", "1-", "a-1", "٣"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--time: found .*for example 12:00:00"):
        seconds(text)


@pytest.fixture
def sinfo(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda answer: monkeypatch.setattr(checks, "_ask", lambda *command: answer)


TWO = "main*|2-00:00:00|4\ngpu_long|infinite|16\n"


@pytest.mark.parametrize(
    ("partition", "time", "nodes"),
    [(None, "2-00:00:00", 4), ("main", "1:00:00", 1), ("gpu_long", "30-0", 16), ("main,gpu_long", "1-0", 2)],
)
def test_what_fits_is_taken(sinfo: Callable[[str], None], partition: str | None, time: str, nodes: int) -> None:
    sinfo(TWO)
    check_partition(partition, time, nodes)


@pytest.mark.parametrize(
    ("partition", "time", "nodes", "words"),
    [
        ("gpu", "1:00:00", 1, "--partition: there is no 'gpu'. This cluster has main, gpu_long."),
        (None, "2-00:00:01", 1, "--time: 2-00:00:01 is more than partition main allows, 2-00:00:00"),
        ("gpu_long,main", "3-0", 1, "more than partition main allows"),
        ("main", "1:00:00", 5, "--nodes: 5, but partition main has 4."),
    ],
)
def test_what_does_not_fit_is_refused(
    sinfo: Callable[[str], None], partition: str | None, time: str, nodes: int, words: str
) -> None:
    sinfo(TWO)
    with pytest.raises(UserError) as caught:
        check_partition(partition, time, nodes)
    assert words in str(caught.value)


def test_a_cluster_without_a_default_wants_a_name(sinfo: Callable[[str], None]) -> None:
    sinfo("a|infinite|1\nb|infinite|1\n")
    with pytest.raises(UserError, match=r"no default one\. Give one of a, b"):
        check_partition(None, "1:00:00", 1)


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """mounts(kind): the folder of this test lies on such a file system, and is no node's own by its name."""
    monkeypatch.setattr(checks, "OF_ONE_NODE", ("/dev/shm",))
    for name in ("TMPDIR", "SLURM_TMPDIR"):
        monkeypatch.delenv(name, raising=False)

    def put(kind: str) -> None:
        table = tmp_path / "table"
        table.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\nproc /proc proc rw 0 0\n")
        monkeypatch.setattr(checks, "MOUNTS", table)

    return put


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "beegfs", "gpfs", "fuse.sshfs"])
def test_a_shared_file_system_is_taken(mounts: Callable[[str], None], kind: str, tmp_path: Path) -> None:
    mounts(kind)
    assert check_run_dir(tmp_path / "runs" / "a") is None
    assert (tmp_path / "runs" / "a").is_dir()


def test_a_local_disk_is_a_warning(mounts: Callable[[str], None], tmp_path: Path) -> None:
    mounts("xfs")
    assert "looks like a disk of this machine alone (xfs)" in (check_run_dir(tmp_path / "run") or "")


def test_memory_is_refused(mounts: Callable[[str], None], tmp_path: Path) -> None:
    mounts("tmpfs")
    with pytest.raises(UserError, match=r"is in memory \(tmpfs\), which each node has for itself"):
        check_run_dir(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["TMPDIR", "SLURM_TMPDIR"])
def test_a_nodes_own_folder_is_refused(
    mounts: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    mounts("nfs4")
    monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(UserError, match="which each node has for itself"):
        check_run_dir(tmp_path / "run")


def test_a_link_does_not_deceive(mounts: Callable[[str], None], tmp_path: Path) -> None:
    mounts("nfs4")
    (tmp_path / "runs").symlink_to("/dev/shm")
    with pytest.raises(UserError, match="is below /dev/shm"):
        check_run_dir(tmp_path / "runs")


def test_a_file_in_the_place_of_the_folder_is_refused(mounts: Callable[[str], None], tmp_path: Path) -> None:
    mounts("nfs4")
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="can't be made: File exists"):
        check_run_dir(tmp_path / "run")
