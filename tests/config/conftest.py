"""A small valid configuration and a way to load it with changes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from accel_train.config.load import load_config
from accel_train.config.schema import RunConfig
from accel_train.errors import UserError

VALID = """\
run_dir: runs/test
max_steps: 100
model:
  type: clip
  size: tiny
data:
  path: sample:emoji-zh
  tokenizer: dataset:tokenizer
  global_batch_size: 32
  micro_batch_size: 8
optimizer:
  towers:
    - name: text
      layers: ['^text_model']
      lr: 1e-4
    - name: rest
      layers: ['.']
      lr: 1e-3
"""


@pytest.fixture
def valid_file(tmp_path: Path) -> Path:
    path = tmp_path / "valid.yaml"
    path.write_text(VALID, encoding="utf-8")
    return path


@pytest.fixture
def load(valid_file: Path) -> Callable[..., RunConfig]:
    """load("key=value", ...): the valid configuration with overrides."""
    return lambda *overrides: load_config(valid_file, overrides)


@pytest.fixture
def load_text(tmp_path: Path) -> Callable[[str | bytes], RunConfig]:
    """load_text(yaml): a configuration from the text of its file."""

    def load_text(text: str | bytes) -> RunConfig:
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path)

    return load_text


@pytest.fixture
def errors(valid_file: Path) -> Callable[..., list[str]]:
    """errors("key=value", ...): the lines, one for each mistake, of what loading with overrides raises."""

    def errors(*overrides: str) -> list[str]:
        with pytest.raises(UserError) as caught:
            load_config(valid_file, overrides)
        head, *lines = str(caught.value).splitlines()
        assert head.startswith(f"{valid_file}: {len(lines)} error")
        assert all(line.startswith("  ") for line in lines)
        return [line[2:] for line in lines]

    return errors
