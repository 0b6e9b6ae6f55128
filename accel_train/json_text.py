"""JSON from outside: what is wrong with a text is one kind of error. And files of JSON lines, read from their end."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 2**16


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for values that are nested deeper than Python can follow."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the values are nested too deeply") from error


def lines_from_end(path: Path, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its line feed) of a file or of its first `end` bytes, the last line first.

    Reads no more than it is asked for, so the last lines of a file of any length are found at once.
    """
    with path.open("rb") as file:
        place = file.seek(0, os.SEEK_END) if end is None else end
        block = b""
        while place > 0:
            size = min(BLOCK, place)
            place -= size
            file.seek(place)
            block = file.read(size) + block
            while (feed := block.rfind(b"\n", 0, len(block) - 1)) >= 0:
                yield place + feed + 1, block[feed + 1 :]
                block = block[: feed + 1]
        if block:
            yield 0, block
