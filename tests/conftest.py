"""Marks by folder, and figures of speed.

tests/distributed starts several processes, tests/gpu needs a CUDA device, tests/benchmarks takes figures for `make bench`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from accel_train.tools.bench.figures import Figure

# CI draws the same examples each time; elsewhere every run looks in new places.
settings.register_profile("ci", derandomize=True, deadline=None, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

TESTS = Path(__file__).parent
FIGURES_FILE = os.environ.get("BENCH_FIGURES")
"""Where figures go. Without it every benchmark is skipped: on a busy machine their figures mean nothing."""
_figures: dict[str, "Figure"] = {}


def pytest_configure() -> None:
    """A shell's job in the background ignores Ctrl-C, and so would the tests of it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder == "distributed":
            item.add_marker(pytest.mark.distributed)
            # Under pytest-xdist one worker takes them all, and another one those of tests/faults and tests/slurm, which
            # often wait. More of them at once would fight for the cores.
            item.add_marker(pytest.mark.xdist_group("distributed"))
        elif folder == "gpu":
            item.add_marker(pytest.mark.gpu)
            if not _has_cuda():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif folder == "benchmarks":
            item.add_marker(pytest.mark.benchmark)
        if FIGURES_FILE is None and item.get_closest_marker("benchmark"):
            item.add_marker(pytest.mark.skip(reason="figures are taken by `make bench`, on an idle machine"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Under --dist loadgroup pytest-xdist renames the tests of a group. pytest 9.2 ignores it: groups would mean nothing."""
    if session.config.getoption("loadgroup", False):
        lost = [one.nodeid for one in session.items if one.get_closest_marker("xdist_group") and "@" not in one.nodeid]
        assert not lost, f"this pytest and this pytest-xdist don't keep groups together: {lost[0]}"


@pytest.fixture
def record() -> Iterator[Callable[["Figure"], None]]:
    """Keeps a figure. A goal missed by more than the spread fails the benchmark; the figure is kept all the same."""

    def keep(figure: "Figure") -> None:
        assert figure.name not in _figures, f"two benchmarks record {figure.name}"
        _figures[figure.name] = figure
        print(figure)
        if figure.is_missed:
            missed.append(str(figure))

    missed: list[str] = []
    yield keep
    if missed:
        pytest.fail("goals missed: " + "; ".join(missed), pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES_FILE is not None and _figures:
        from accel_train.tools.bench.figures import write_figures

        write_figures(Path(FIGURES_FILE), list(_figures.values()))
        terminalreporter.section(f"figures, in {FIGURES_FILE}")
        for name in sorted(_figures):
            terminalreporter.write_line(str(_figures[name]))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
