"""JSON from outside: what is wrong with a text is one kind of error."""

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for values that are nested deeper than Python can follow."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the values are nested too deeply") from error
