"""The table of `verify` fits the terminal, and is one line for each group where there is none."""

import io

import pytest
from rich.console import Console

from accel_train.tools.verify.comparison import Closeness, GroupReading, Reading
from accel_train.tools.verify.report import NUMBERS, SETTINGS, print_tables
from accel_train.tools.verify.verdict import Tolerance

SAME = Closeness(error=1e-7, cosine=1.0, ratio=1.0, norm=0.495)


def reading() -> Reading:
    names = ("image", "image.no_decay", "temperature")
    return Reading(
        world_size=1,
        num_micro_batches=2,
        groups=[
            GroupReading(
                name=name,
                tower="image",
                num_parameters=4,
                lr=(6.76e-06, 6.76e-06),
                weight_decay=(0.05, 0.05),
                max_grad_norm=(None, None),
                gradient=SAME,
                gradient_without_temperature=None,
                update=SAME,
                state=SAME,
                update_to_weight=8.4e-05,
            )
            for name in names
        ],
        temperature=None,
        losses=(1.0, 1.0),
        same_samples=True,
        num_samples=64,
        other_start=[],
        num_frozen=0,
        moved=[],
        other_buffers=[],
        clipped_norm=1.0,
        draws=False,
        remarks=[],
    )


@pytest.mark.parametrize(("width", "terminal", "tables"), [(80, True, 2), (120, True, 1), (80, False, 1)])
def test_the_table_fits(width: int, terminal: bool, tables: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=terminal, color_system=None)
    print_tables(reading(), Tolerance(1e-5, 1e-5), console)
    lines = screen.getvalue().splitlines()
    if terminal:
        assert max(map(len, lines)) <= width
    headers = " ".join(line.replace("group", "") for line in lines if "group" in line)
    assert headers.split() == " ".join((*SETTINGS, *NUMBERS)).split()
    assert sum("image.no_decay " in line for line in lines) == tables
