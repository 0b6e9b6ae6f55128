import json
from pathlib import Path

import pytest

from accel_train.config.key_names import all_keys
from accel_train.config.schema import RunConfig
from accel_train.config.tasks import BUILT_IN
from accel_train.errors import UserError
from accel_train.tools.schema import json_schema, schema


@pytest.mark.parametrize("section", BUILT_IN.values())
def test_every_key_is_there_and_nothing_else_is_allowed(section: type[RunConfig]) -> None:
    found = json_schema()
    assert found["$schema"].startswith("https://json-schema.org/")
    assert {"$ref": f"#/$defs/{section.__name__}"} in found["anyOf"]
    mine = found["$defs"][section.__name__]
    assert set(mine["properties"]) == {path for path in all_keys(section) if "." not in path}
    assert {"run_dir", "data", "optimizer"} <= set(mine["required"])


def test_no_section_takes_unknown_keys() -> None:
    assert all(section["additionalProperties"] is False for section in json_schema()["$defs"].values())


def test_keys_carry_their_docs_ranges_and_choices() -> None:
    sections = json_schema()["$defs"]
    size = sections["PairData"]["properties"]["global_batch_size"]
    assert size["description"].startswith("Samples in one optimizer step")
    assert size["minimum"] == 1
    assert sections["OptimizerSection"]["properties"]["name"]["enum"] == ["adamw", "adam", "sgd", "lion"]
    assert sections["ContrastiveConfig"]["properties"]["model"]["discriminator"]["propertyName"] == "type"


def test_prints_or_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema(None)
    assert json.loads(capsys.readouterr().out) == json_schema()
    schema(str(tmp_path / "schema.json"))
    assert json.loads((tmp_path / "schema.json").read_text(encoding="utf-8")) == json_schema()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be written: No such file or directory"):
        schema(str(tmp_path / "absent" / "schema.json"))
