"""Rows of tables of predictions."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

Row = dict[str, Any]
Item = TypeVar("Item")


def numbered(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows with these columns as finite numbers; rows where one is none are left out."""
    found = []
    for row in rows:
        try:
            values = {name: float(row[name]) for name in columns}
        except (TypeError, ValueError, KeyError):
            continue
        if all(map(math.isfinite, values.values())) and None not in row.values():
            found.append({**row, **values})
    return found


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """So many items at most, from the first to the last at equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]
