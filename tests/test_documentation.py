"""What the documentation shows is true: its commands parse, its configurations load, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from accel_train.cli import COMMANDS
from accel_train.config.load import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
FENCED = re.compile(r"```bash\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
QUICK = ("schema", "doctor")


def commands_of(text: str) -> list[list[str]]:
    """Every `accel-train ...` or `... -m accel_train ...` command in a page's bash blocks or a configuration's comments."""
    text = re.sub(r"\\\n#?\s*", " ", text)  # join continued lines
    lines = [line for block in FENCED.findall(text) for line in block.splitlines()]
    lines += [line.lstrip("# ") for line in text.splitlines() if line.startswith("#   ")]
    words = [shlex.split(line, comments=True) for line in lines if "accel-train " in line or "-m accel_train" in line]
    return [line[_place(line) + 1 :] for line in words]


def _place(words: list[str]) -> int:
    return words.index("accel-train") if "accel-train" in words else words.index("accel_train")


def folder_of(path: Path) -> Path:
    """Where a page's commands are given: the repository's root, or where its first `cd` leads from there."""
    found = re.search(r"^cd (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return ROOT / found[1] if found else ROOT


CASES = [
    pytest.param(command, folder_of(path), id=f"{path.relative_to(ROOT)}: {' '.join(command)}")
    for path in [*PAGES, *CONFIGS]
    if path.exists()
    for command in commands_of(path.read_text(encoding="utf-8"))
]


def test_commands_are_found():
    assert len(CASES) >= 10


@pytest.mark.parametrize(("command", "folder"), CASES)
def test_command_is_one_that_runs(command, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [*sys.path])
    name, *arguments = command
    assert name in COMMANDS
    given = [word for word in arguments if not word.startswith("-")]
    if name in ("train", "plan") and given and given[0] != "CONFIG":
        load_config(given[0], [word for word in given[1:] if re.match(r"[a-z_]+(\.\w+)*=", word)])
    if name in QUICK:
        done = subprocess.run(
            [sys.executable, "-m", "accel_train", *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_configuration_begins_with_purpose_score_and_command(path):
    head = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert head is not None
    assert "Expected:" in head[0]
    assert "accel-train train" in head[0]
