"""docs/reliability.md says what `--inject` takes and what the tests inject, no more and no less."""

from pathlib import Path

from accel_train.config.faults import KINDS, MOMENTS
from tests.faults.chains import CHAINS, SAME_COMMAND, fault_counts

PAGE = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")
COLUMNS = ("ddp", "zero1", "zero2", "zero3", "fsdp2", "one rank")


def tables() -> list[list[list[str]]]:
    """The cells of every table of the page, without the line under its head."""
    found: list[list[list[str]]] = [[]]
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            found.append([])
        elif not set(line) <= set("|- "):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return [table for table in found if table]


def counted() -> list[list[str]]:
    counts = fault_counts()
    names = sorted({name for name, _ in counts}, key=lambda name: (list(KINDS).index(name.split(",")[0]), name))
    rows = [[name, *(str(counts[name, column] or "") for column in COLUMNS)] for name in names]
    sums = [str(sum(count for (_, engine), count in counts.items() if engine == column)) for column in COLUMNS]
    return [["fault", *COLUMNS], *rows, [f"all {counts.total()}", *sums]]


def test_the_table_of_what_was_tried_is_that_of_the_tests() -> None:
    expected = "\n".join(f"| {' | '.join(row)} |" for row in counted())
    assert counted() in tables(), f"docs/reliability.md needs:\n{expected}"


def test_every_kind_and_moment_is_explained() -> None:
    kinds = next(table for table in tables() if table[0][0] == "written as")
    assert [(row[0], row[1]) for row in kinds[1:]] == [(f"`{kind.example}`", kind.meaning) for kind in KINDS.values()]
    moments = next(table for table in tables() if table[0][0] == "`at=`")
    assert [tuple(row) for row in moments[1:]] == [(f"`{name}`", meaning) for name, meaning in MOMENTS.items()]


def test_the_numbers_in_the_text() -> None:
    starts = sum(len(chain.starts) for chain in CHAINS) + SAME_COMMAND.count(",") + 1
    assert f"{fault_counts().total()} faults" in PAGE
    assert f"{starts} of them end the run" in PAGE
