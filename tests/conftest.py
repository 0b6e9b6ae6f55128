"""Marks by folder: tests/distributed starts several processes, tests/gpu needs a CUDA device."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# CI draws the same examples each time; elsewhere every run looks in new places.
settings.register_profile("ci", derandomize=True, deadline=None, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

TESTS = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder == "distributed":
            item.add_marker(pytest.mark.distributed)
            # Two of them at once would fight for the cores: under pytest-xdist one worker takes them all.
            item.add_marker(pytest.mark.xdist_group("distributed"))
        elif folder == "gpu":
            item.add_marker(pytest.mark.gpu)
            if not _has_cuda():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
