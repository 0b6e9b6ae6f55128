"""Any script: words, or one error. Nothing of it is run, and nothing is written but a configuration that loads."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.config.load import load_config
from accel_train.errors import UserError
from accel_train.tools.migrate.command import migrate
from accel_train.tools.migrate.shell import Shell
from tests.fuzzing import FUZZ, damaged

SCRIPT = """\
#!/bin/bash
export CANARY=$(touch canary) `touch canary`
DATAPATH=${1:-/data}; name="muge $(touch canary)"
if [ -f x ]; then touch canary; fi
python3 -m torch.distributed.launch --nproc_per_node=2 cn_clip/training/main.py \\
    --train-data=${DATAPATH}/lmdb/train --val-data="${DATAPATH}/lmdb/valid" --batch-size=128 --lr=2e-5 \\
    --vision-model=ViT-B-16 --text-model=RoBERTa-wwm-ext-base-chinese --max-epochs=3 --name='m' | touch canary
eval "touch canary"; . ./other.sh; exec touch canary
"""
SIGNS = [
    "$(",
    "`",
    "${",
    "}",
    "\\",
    "'",
    '"',
    "\n",
    "\r",
    ";",
    "|",
    "&",
    "<",
    ">>",
    "#",
    "(",
    ")",
    " ",
    "\0",
    "\x1b",
    "词",
]
WORDS = [
    "A=",
    "$A",
    "${A:-",
    "$1",
    "if",
    "fi",
    "main.py",
    "--batch-size=",
    "9" * 5000,
    "--nproc_per_node=",
    "$(touch canary)",
]
PIECES = st.sampled_from([*SIGNS, *WORDS, "cn_clip/training/main.py"])


@pytest.fixture(autouse=True)
def nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    for owner, name in ((subprocess, "Popen"), (os, "system"), (os, "execv"), (os, "posix_spawn"), (os, "fork")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@FUZZ
@given(st.text(max_size=60) | st.lists(PIECES, max_size=12).map("".join))
def test_any_text_is_words_or_an_error(script: str) -> None:
    try:
        commands = list(Shell(["/data"], {"NAME": "x"}).commands(script))
    except UserError as error:
        assert str(error).startswith("line ")
    else:
        assert all(isinstance(word.text, str) for words in commands for word in words)


@FUZZ
@given(damaged(SCRIPT.encode()) | st.lists(PIECES, max_size=12).map(lambda parts: "".join(parts).encode()))
def test_a_damaged_script_gives_a_configuration_that_loads_or_nothing(tmp_path: Path, content: bytes) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir()
    (tmp_path / "run.sh").write_bytes(content)
    try:
        migrate("run.sh", "out.yaml", arguments=["/data"], variables={}, options=[], ranks=None, as_json=True)
    except UserError as error:
        assert str(error)
        assert [path.name for path in tmp_path.iterdir()] == ["run.sh"]
    else:
        assert load_config(tmp_path / "out.yaml").run_dir
        assert {path.name for path in tmp_path.iterdir()} == {"run.sh", "out.yaml"}
