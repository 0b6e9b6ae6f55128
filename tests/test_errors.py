"""Codes of messages: each one in the source has a section in docs/errors.md and the reverse, and all are printed alike."""

import ast
import json
import pickle
import re
from pathlib import Path

import pytest

from accel_train import cli
from accel_train.commands.explain import PAGE, read_sections
from accel_train.errors import CheckFailed, NotNow, Stopped, UserError, explained_by

PACKAGE = Path(__file__).parents[1] / "accel_train"
CODE = re.compile(r"AT\d{3}")


def codes_in_source() -> set[str]:
    """Every text in the package that is a code and nothing else."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                found.add(node.value)
    return found


def test_every_code_has_a_section_and_every_section_a_code() -> None:
    assert codes_in_source() == set(read_sections())
    assert len(read_sections()) >= 25


def test_sections_are_unique_in_order_and_complete() -> None:
    headings = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == sorted(set(headings))
    assert headings == list(read_sections())
    for code, (title, text) in read_sections().items():
        assert title.endswith("."), code
        assert "What to do:" in text, code


def test_a_code_is_in_no_two_kinds_of_ending() -> None:
    """One code, one family: what refuses to start and what failed on the way are told apart by the exit code."""
    kinds: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                for keyword in node.keywords:
                    if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                        name = node.func.id.replace("NotNow", "UserError")
                        kinds.setdefault(str(keyword.value.value), set()).add(name)
    assert {code: names for code, names in kinds.items() if len(names & {"UserError", "CheckFailed"}) > 1} == {}


@pytest.mark.parametrize("kind", [UserError, NotNow, CheckFailed, Stopped])
def test_the_code_travels_between_processes_and_is_no_part_of_the_message(kind: type[UserError]) -> None:
    failure = pickle.loads(pickle.dumps(kind("a: found b", code="AT100")))
    assert (str(failure), failure.code) == ("a: found b", "AT100")
    assert kind("a").code is None


def test_the_program_prints_where_more_stands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "a.yaml").write_text("seeds: 3\n")
    assert cli.main(["plan", str(tmp_path / "a.yaml")]) == 2
    assert capsys.readouterr().err.rstrip().endswith("(AT100: accel-train explain AT100)")


def test_explain_prints_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    for code in read_sections():
        assert cli.main(["explain", code.lower()]) == 0
        output = capsys.readouterr().out
        assert output.startswith(f"{code}: ")
        assert "##" not in output
        assert "```" not in output
    assert cli.main(["explain", "AT120", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["code"] == "AT120"


def test_explain_fits_the_terminal_and_leaves_examples_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for code, (_, text) in read_sections().items():
        cli.main(["explain", code])
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line) <= 60 or line in text.splitlines() for line in lines), code
    cli.main(["explain", "AT100"])
    assert "\n\ndata.imagesize: no such key (found 64). Nearest: data.image_size.\n" in capsys.readouterr().out


def test_explain_lists_all_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(read_sections())
    assert cli.main(["explain", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == list(read_sections())


def test_an_unknown_code_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "AT12O"]) == 2
    assert "Nearest: AT12" in capsys.readouterr().err


def test_the_pointer() -> None:
    assert explained_by("AT120") == "(AT120: accel-train explain AT120)"
