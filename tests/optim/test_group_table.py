import io

from rich.console import Console

from accel_train.optim.group_table import group_table
from accel_train.optim.param_groups import FrozenPart, GroupPlan, ParamGroup


def group(name: str, layer: int, lr: float, weight_decay: float, num_layers: int = 1) -> ParamGroup:
    clip = 0.5 if name == "heads" else None
    tower = name.partition(".")[0]
    return ParamGroup(name, tower, layer, num_layers, (f"{name}.a", f"{name}.b"), 1000, lr, weight_decay, clip)


PLAN = GroupPlan(
    [
        group("text.01", 1, 1e-5, 0.1),
        group("text.01.no_decay", 1, 1e-5, 0.0),
        group("text.02", 2, 2e-5, 0.1),
        group("text.02.no_decay", 2, 2e-5, 0.0),
        group("heads", 1, 1e-3, 0.1, num_layers=2),
    ],
    [FrozenPart("text", ("text.embedding",), 5000)],
)


def lines(max_rows: int | None) -> list[str]:
    """The table's lines, header first, with single spaces."""
    stream = io.StringIO()
    Console(file=stream, width=100).print(group_table(PLAN, max_rows=max_rows))
    return [" ".join(line.split()) for line in stream.getvalue().splitlines() if line.strip() and "─" not in line]


def test_one_line_for_each_group() -> None:
    assert lines(None) == [
        "group layer tensors parameters % lr decay clip",
        "text.01 1 2 1,000 10.0 1e-05 0.1",
        "text.01.no_decay 1 2 1,000 10.0 1e-05 0",
        "text.02 2 2 1,000 10.0 2e-05 0.1",
        "text.02.no_decay 2 2 1,000 10.0 2e-05 0",
        "heads 0–1 2 1,000 10.0 0.001 0.1 0.5",
        "text 1 5,000 50.0 frozen",
        "all that trains 10 5,000 50.0",
    ]


def test_groups_of_a_layer_share_a_line() -> None:
    assert lines(3)[1:4] == [
        "text.01 1 4 2,000 20.0 1e-05 0.1, 0",
        "text.02 2 4 2,000 20.0 2e-05 0.1, 0",
        "heads 0–1 2 1,000 10.0 0.001 0.1 0.5",
    ]


def test_groups_of_a_tower_share_a_line() -> None:
    assert lines(2)[1:3] == ["text 1–2 8 4,000 40.0 1e-05–2e-05 0.1, 0", "heads 0–1 2 1,000 10.0 0.001 0.1 0.5"]
