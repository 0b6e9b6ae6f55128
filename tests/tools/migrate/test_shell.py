import shutil
import subprocess
from pathlib import Path

import pytest

from accel_train.errors import UserError
from accel_train.tools.migrate.shell import Shell

SNIPPETS = {
    "plain": "show a b  c",
    "quotes": """show 'a b' "c d" e'f g'h"i j" "" '' \\"x\\ y""",
    "variables": 'A=1 B="x y"\nshow $A ${A}2 $B "$B" pre$B"post" \'$A\' "\\$A"',
    "empty variable": 'A=\nshow $A b "$A"',
    "blanks at the ends": 'A=" x y "\nshow p${A}q',
    "defaults": "A=\nshow ${A:-d} ${A:-} ${B-e} end",
    "defaults with variables": "A=1 C=\nshow ${B:-$A} ${C:-${B:-x}/y} ${A:-$(exit)} ${1:-$B}",
    "defaults with quotes": """C=\nshow "${C:-a b}" ${C:-"a b"} ${C:-'$A }'} "${C:-'q'}" ${C:-a b}""",
    "continuation": "show a \\\n  b \\\n  --c=d",
    "continued inside quotes": 'show "a \\\nb"',
    "comments": "show a#b c # d 'e\nshow f  # not \"closed",
    "several on a line": "A=1; B=$A$A && show $B; show end | cat",
    "export": "export A=1 B=2\ndeclare -r C=3\nshow $A$B$C",
    "prefix": "A=1\nA=2 true\nshow word",
    "append": 'A="--x 1"\nA+=" --y"\nshow $A',
    "redirections": "show a >/dev/stdout 2>&1 b 2>/dev/null <&0",
    "positional": "A=${1}/x\nshow $A ${2} $2",
    "equals": "A=k=v=w\nshow --a=$A b=c",
    "other alphabets": "A=数据\nshow $A/训练",
    "dollar alone": "show a$ $/ '$'",
    "Windows line ends": "A=1\nshow $A b",
}


def shown(script: str, *arguments: str, **variables: str) -> list[list[str]]:
    commands = Shell(list(arguments), variables).commands(script)
    return [[word.text for word in words[1:]] for words in commands if words[0].text == "show"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="compares with bash")
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_words_are_those_of_bash(snippet: str) -> None:
    shows = "show() { printf '%s\\0' \"$@\"; printf '\\1'; }\n"
    command = ["bash", "-c", shows + SNIPPETS[snippet], "script", "first", "second"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wanted = [part.split("\0")[:-1] for part in done.stdout.split("\1")[:-1]]
    found = shown(
        SNIPPETS[snippet].replace("\n", "\r\n") if "Windows" in snippet else SNIPPETS[snippet], "first", "second"
    )
    assert found == wanted


def test_nothing_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    script = f"touch {marker}\nA=$(touch {marker})\nB=`touch {marker}`\nshow $A\n"
    assert list(Shell([], {}).commands(script))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("A=`pwd`/x\nshow $A", "line 1 needs a shell for"),
        ("A=$(pwd)\nB=$A/x\nshow $B", "line 1 needs a shell for"),
        ("if [ -d x ]; then\n  A=1\nfi\nshow $A", "line 2 sets A inside a branch"),
        ("for i in 1 2; do A=$i; done\nshow $A", "line 1 sets A inside a branch, a loop"),
        ("f() {\n A=1\n}\nshow $A", "line 2 sets A inside a branch, a loop or a function"),
        ("A=(x y)\nshow $A", "line 1 makes A an array"),
        ("show $NOT_THERE", "line 1 takes ${NOT_THERE}, which the script does not set"),
        ("\n\nshow ${3}", "line 3 takes argument 3 of the script, which was not given"),
        ("show ${A:-`pwd`}", "line 1 needs a shell for `pwd`"),
        ("show ${A:-$NOT_THERE}", "line 1 takes ${NOT_THERE}, which the script does not set"),
        ("show ${A%.*}", "line 1 needs a shell for"),
        ('show "$@"', "line 1 needs a shell for"),
    ],
)
def test_what_needs_a_shell_is_unknown_and_says_why(script: str, reason: str) -> None:
    ((_, word),) = [words for words in Shell([], {}).commands(script) if words[0].text == "show"]
    assert word.unknown is not None
    assert word.unknown.startswith(reason)


@pytest.mark.parametrize(
    "substitution",
    [
        '"$(cd "$(dirname "$0")" && pwd)"',
        "$((2 * (3 + 4)))",
        "${A%${B:-c}}",
        "$(echo ')' \"}\" \\) `echo x`)",
        "$(awk '{print $1}' file | tr -d \"'\")",
    ],
)
def test_what_is_inside_a_substitution_is_no_end_of_it(substitution: str) -> None:
    script = f"A={substitution}; show before $A\nshow 'af ter'"
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
    first, second = [words for words in Shell([], {}).commands(script) if words[0].text == "show"]
    assert [word.text for word in first[1:]] == ["before", ""]
    assert first[2].unknown == "line 1 needs a shell for " + substitution.strip('"')
    assert [(word.text, word.unknown) for word in second[1:]] == [("af ter", None)]


def test_a_branch_ends() -> None:
    assert shown("if true; then echo; fi\nA=1\nshow $A") == [["1"]]


def test_given_variables_take_the_place_of_the_scripts() -> None:
    assert shown("A=1\nB=${A}x\nshow $A $B", A="2") == [["2", "2x"]]


@pytest.mark.parametrize("script", ["show 'a", 'show "a', "show `a", "show $(a"])
def test_what_is_not_closed_is_an_error(script: str) -> None:
    with pytest.raises(UserError, match="line 1"):
        list(Shell([], {}).commands(script))
