"""What is freed is not given back: the same memory again costs no page fault."""

import platform
import resource
import subprocess
import sys

import pytest

from accel_train.engine.host_memory import keep_freed_memory

MEBIBYTES = 64
PAGES = MEBIBYTES * 2**20 // resource.getpagesize()


def faults_of_the_same_memory_again() -> int:
    bytearray(MEBIBYTES * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(MEBIBYTES * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's settings are glibc's")
def test_freed_memory_is_found_again() -> None:
    code = "from tests.engine.test_host_memory import *; print(keep_freed_memory(), faults_of_the_same_memory_again())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    assert kept == "True"
    assert int(faults) < PAGES / 100


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
