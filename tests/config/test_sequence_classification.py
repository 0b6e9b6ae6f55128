from typing import Any

import pytest
import yaml

from accel_train.config.load import load_config
from accel_train.errors import UserError
from tests.labelled import small_config


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"pretrained": "folder"}, "model.pretrained: pretrained is 'folder' and architecture is 'llama'"),
        ("model", {"architecture": None}, "model.pretrained: neither pretrained nor architecture is given"),
        (
            "model",
            {"architecture": None, "pretrained": "folder"},
            "would be ignored beside model.pretrained ('folder')",
        ),
        ("data", {"shuffle": False}, "data.length_window: 3 contradicts data.shuffle: false"),
        ("data", {"tokenizer": " "}, "data.tokenizer: found ' '; it must not be empty"),
        ("data", {"length_window": -1}, "data.length_window"),
    ],
)
def test_contradictions(section: str, changes: dict[str, Any], message: str, tmp_path: Any) -> None:
    values: dict[str, Any] = small_config(tmp_path, "run")
    values[section] |= changes
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert message in str(caught.value)


def test_the_small_one_is_right(tmp_path: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(tmp_path, "run")))
    config = load_config(path)
    assert config.task == "sequence_classification"
