import json
from pathlib import Path
from typing import Any

import pytest

from accel_train.tools.doctor import differences, doctor, skew, warnings
from accel_train.tools.machine import cpu_quota, facts, launch_variables, memory_limit


@pytest.fixture
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """This machine's facts with everything that could raise a warning set right."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return {
        **facts(tmp_path),
        "host": "node1",
        "launch": {},
        "devices": [],
        "nvidia_driver": False,
        "disk_free": 10**12,
        "shared_memory": 10**10,
        "cpus": 8,
        "cpu_quota": None,
        "torch_threads": 1,
        "clock": 1000.0,
        "reduced_over": "gloo",
        "packages": {"torch": "2.13.0+cpu", "torchvision": None, "deepspeed": "0.19.8"},
    }


def test_nothing_to_warn_of(healthy: dict[str, Any]) -> None:
    assert list(warnings(healthy)) == []


DEVICE = {"name": "GPU", "memory": 1, "capability": "9.0", "bf16": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"launch": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "true"}}, "drops DeepSpeed"),
        (
            {
                "launch": {"ACCELERATE_USE_DEEPSPEED": "true"},
                "packages": {"torch": "2", "torchvision": None, "deepspeed": None},
            },
            r"accel_train\[deepspeed\]",
        ),
        ({"launch": {"ACCELERATE_USE_FSDP": "true"}}, "only FSDP2"),
        ({"launch": {"SLURM_NTASKS": "4"}}, "each would train alone"),
        ({"launch": {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "devices": [DEVICE]}, "2 ranks for 1 CUDA devices"),
        ({"torch_threads": 16}, "16 threads on 8 CPUs"),
        ({"cpu_quota": 0.5}, r"on 0\.5 CPUs"),
        ({"nvidia_driver": True}, "sees no device"),
        ({"packages": {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "deepspeed": None}}, "torchvision 0.28.0"),
        ({"disk_free": 10**9}, r"1\.0 GB free here"),
        ({"shared_memory": 64 * 10**6}, "64 MB free in /dev/shm"),
        ({"extension_locks": ["/x/lock"]}, "/x/lock makes DeepSpeed wait"),
    ],
)
def test_warnings(healthy: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    found = list(warnings({**healthy, **changes}))
    assert len(found) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found[0])


def test_differences_between_ranks(healthy: dict[str, Any]) -> None:
    other = {**healthy, "python": "3.99", "launch": {"RANK": "1", "NCCL_DEBUG": "INFO"}, "host": "node2"}
    other["packages"] = {**healthy["packages"], "torch": "2.0"}
    healthy["launch"] = {"RANK": "0"}
    assert differences([healthy, other]) == {
        "packages.torch": ["2.13.0+cpu", "2.0"],
        "launch.NCCL_DEBUG": [None, "INFO"],
        "python": [healthy["python"], "3.99"],
    }
    assert differences([healthy, healthy]) == {}


def test_clocks_that_differ(healthy: dict[str, Any]) -> None:
    assert list(skew([healthy, {**healthy, "clock": 1001.0}])) == []
    assert next(skew([healthy, {**healthy, "clock": 1005.0}])).startswith("The clocks of the ranks differ by 5.0 s")


def test_memory_limit_of_both_control_groups(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1024\n")
    assert memory_limit(tmp_path) == 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("2048\n")
    assert memory_limit(tmp_path) == 2048


def test_cpu_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(tmp_path) == 1.5


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JWT", "secret")  # a token that lets its holder start jobs
    monkeypatch.setenv("ACCELERATE_LOG", "https://me:secret@host/")
    found = launch_variables()
    assert found["SLURM_JOB_ID"] == "7"
    assert not {"HF_TOKEN", "SLURM_JWT", "ACCELERATE_LOG"} & found.keys()


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    doctor(as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert len(report["ranks"]) == 1
    assert report["ranks"][0]["packages"]["torch"]
    assert report["differences"] == {}
    assert set(report["extras"]) == {"deepspeed", "lmdb", "datasets", "plot", "tensorboard"}


def test_text_on_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("SLURM_JOB_NAME", "[bold]")
    doctor()
    shown = capsys.readouterr().out
    assert "not launched as a group" in shown
    assert "SLURM_JOB_NAME=[bold]" in shown
