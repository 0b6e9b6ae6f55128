"""The JSON schema of configuration files, made from the classes that check them."""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from accel_train.config.tasks import BUILT_IN
from accel_train.errors import UserError


def json_schema() -> dict[str, Any]:
    """Every key with its type, range, default and description."""
    tasks, definitions = models_json_schema([(section, "validation") for section in BUILT_IN.values()])
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "accel_train configuration",
        "anyOf": list(tasks.values()),
        **definitions,
    }


def schema(output: str | None) -> None:
    """Prints the schema, or writes it to the file `output`."""
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if output is None:
        print(text)
        return
    try:
        Path(output).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output}: can't be written: {error.strerror}. Its folder must exist.") from error
    print(f"Wrote {output}. Use it in a configuration with a first line `# yaml-language-server: $schema={output}`.")
