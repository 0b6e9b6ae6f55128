import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel_train import cli, quiet
from accel_train.commands.data import IMPORTS
from accel_train.config.tasks import DEFAULT
from accel_train.errors import CheckFailed, NotNow, Stopped, UserError

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
HEAVY = {"torch", "transformers", "accelerate", "deepspeed", "datasets", "pyarrow", "numpy"}

# Runs a command and prints which heavy modules it imported, and its exit code.
PROBE = f"""
import sys
from accel_train.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code or 0
print("IMPORTED", sorted({HEAVY!r} & set(sys.modules)), code)
"""


def probe(*argv: str) -> tuple[str, str, str]:
    """Last line of the probe, the rest of its standard output, and its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    output, _, last = done.stdout.rstrip("\n").rpartition("\n")
    return last, output, done.stderr


@pytest.mark.parametrize(
    "argv", [["--help"], [], ["--version"], ["schema"], *([name, "--help"] for name in cli.COMMANDS)]
)
def test_help_and_schema_import_nothing_heavy(argv: list[str]) -> None:
    last, output, errors = probe(*argv)
    assert last == "IMPORTED [] 0"
    assert output
    assert errors == ""


def test_help_does_not_even_import_the_configuration() -> None:
    """It must come at once: pydantic alone takes longer than all the rest."""
    script = PROBE.replace(repr(HEAVY), repr({"pydantic", "yaml", "rich"}))
    command = [sys.executable, "-c", script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.rstrip("\n").endswith("IMPORTED [] 0")


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_configuration_error_imports_nothing_heavy(command: str) -> None:
    last, output, errors = probe(command, QUICKSTART, "data.imagesize=3", "engine=zero9")
    assert last == "IMPORTED [] 2"
    assert output == ""
    assert f"accel-train: {QUICKSTART}: 2 errors" in errors
    assert "Nearest: data.image_size." in errors
    assert "Traceback" not in errors


def test_python_m_runs_the_same() -> None:
    argv = [sys.executable, "-m", "accel_train", "trian"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "accel-train: no command is called 'trian'. Nearest: train. `accel-train --help` explains them.\n"
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_help_has_an_example_of_its_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([name, "--help"])
    assert exit_.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: accel-train {name} ")
    *_, example = output.rstrip().splitlines()
    assert f" {name}" in example
    assert "accel" in example


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["xyzzy"],
            f"no command is called 'xyzzy'. The commands: {', '.join(cli.COMMANDS)}.",
        ),
        (
            ["plan"],
            "plan: the following arguments are required: CONFIG. `accel-train plan --help` explains the arguments.\n",
        ),
        (["plan", QUICKSTART, "--jsn"], "unrecognized arguments: --jsn"),
        (["plan", QUICKSTART, "--ranks", "0"], "argument --ranks: found '0'; it must be a whole number above 0"),
        (["export", "run", "out", "--checkpoint", "worst"], "found 'worst'; it must be best, latest, or a step"),
        (["train", "absent.yaml"], "absent.yaml: can't be read: No such file or directory"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("accel-train: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[tuple[Any, Any]]]:
    """calls(module, function): puts a recorder in its place and returns what it records."""

    def stand_in(module: str, function: str) -> list[tuple[Any, Any]]:
        recorded: list[tuple[Any, Any]] = []
        fake = types.ModuleType(module)
        fake.__dict__[function] = lambda *args, **kwargs: recorded.append((args, kwargs))
        monkeypatch.setitem(sys.modules, module, fake)
        return recorded

    return stand_in


def test_train_takes_overrides_around_its_options(calls: Callable[..., list[Any]]) -> None:
    recorded = calls("accel_train.train", "train")
    assert cli.main(["train", QUICKSTART, "seed=3", "--fresh", "engine=zero2"]) == 0
    ((config,), options) = recorded[0]
    assert (config.seed, config.engine) == (3, "zero2")
    assert options == {"fresh": True, "inject": ()}


def test_plan(calls: Callable[..., list[Any]]) -> None:
    recorded = calls("accel_train.tools.plan.command", "plan")
    assert cli.main(["plan", "--ranks", "8", "--picture", "lr.png", QUICKSTART, "seed=4"]) == 0
    ((config,), options) = recorded[0]
    assert config.seed == 4
    assert options == {"as_json": False, "picture": "lr.png", "world_size": 8, "fit": None, "scale": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fits", "80"], "found '80'; it must be a size such as 80GiB"),
        (["--gpus", "8"], "--gpus is for --scale, and would be ignored"),
        (["--scale", "--intra-node", "300"], "--scale needs --inter-node GB/s"),
        (["--scale", "--intra-node", "3", "--inter-node", "2", "--tflops", "9"], "give both, or neither"),
        (["--scale", "--intra-node", "-3", "--inter-node", "2"], "it must be a number above 0"),
    ],
)
def test_questions_of_plan_that_are_not_whole(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", QUICKSTART, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_evaluate(calls: Callable[..., list[Any]]) -> None:
    recorded = calls("accel_train.tools.evaluation", "evaluate_command")
    assert cli.main(["evaluate", "runs/x", "--checkpoint", "120", "--json", "evaluation.batch_size=4"]) == 0
    options = {
        "split": None,
        "overrides": ["evaluation.batch_size=4"],
        "as_json": True,
        "contact_sheet": None,
        "predictions": None,
        "checkpoint": "step_00000120",
    }
    assert recorded == [(("runs/x",), options)]


def test_export(calls: Callable[..., list[Any]]) -> None:
    recorded = calls("accel_train.tools.export", "export")
    assert cli.main(["export", "runs/x", "out", "--checkpoint", "latest"]) == 0
    assert cli.main(["export", "runs/x", "--checkpoint", "latest"]) == 0
    options = {"checkpoint": "latest", "format": "hugging_face", "lora": None, "as_json": False}
    assert recorded == [(("runs/x", "out"), options), (("runs/x", None), options)]


def test_import(calls: Callable[..., list[Any]]) -> None:
    recorded = calls("accel_train.tools.imports.pairs", "import_data")
    printed = calls("accel_train.tools.imports.summary", "print_import")
    argv = [
        "import",
        "a.csv",
        "out",
        "--split",
        "train",
        "--split",
        "dev",
        "--valid-share",
        "0.1",
        "--build-tokenizer",
        "500",
    ]
    assert cli.main(argv) == 0
    options = {
        "format": None,
        "splits": ["train", "dev"],
        "image_column": None,
        "text_column": None,
        "image_id_column": None,
        "text_id_column": None,
        "valid_share": 0.1,
        "build_tokenizer": 500,
        "max_bad_records": 0,
        "show_progress": True,
    }
    assert recorded == [(("a.csv", "out"), options)]
    assert printed == [((None,), {"as_json": False})]


def test_import_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    from accel_train.tools.imports.pairs import FORMATS

    with pytest.raises(SystemExit):
        cli.main(["import", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert f"Formats: {', '.join(FORMATS)}." in output
    assert f"what the data is for: {', '.join(IMPORTS)} (default: {DEFAULT});" in output


def test_doctor(calls: Callable[..., list[Any]]) -> None:
    recorded = calls("accel_train.tools.doctor", "doctor")
    assert cli.main(["doctor", "--json"]) == 0
    assert recorded == [((), {"as_json": True})]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a: found b"), 2, "accel-train: a: found b\n"),
        (CheckFailed("scores fell"), 1, "accel-train: scores fell\n"),
        (Stopped("stopped at step 3"), 75, "accel-train: stopped at step 3\n"),
        (cli.Terminated(), 143, "accel-train: ended by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "accel-train: interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "doctor", fail)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("width", [80, 120, 200])
def test_help_is_grouped_and_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for title, group in cli.GROUPS.items():
        at = lines.index(f"{title}:")
        listed = lines[at + 1 : lines.index("", at)]
        assert [line.split()[0] for line in listed if line[2] != " "] == list(group)
    assert max(map(len, lines)) <= min(width, 120)
    assert {name for group in cli.GROUPS.values() for name in group} == set(cli.COMMANDS)


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_fits_the_terminal(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but lines to copy, which are indented and whole."""
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    text, _, example = capsys.readouterr().out.partition("\nexample:\n")
    assert len(example.splitlines()) == 1
    lines = [line for line in text.splitlines() if "accel-train completion" not in line]
    assert max(map(len, lines)) <= min(width, 120)
    assert not any(line.rstrip().endswith("-") for line in lines), "an option is broken at its hyphen"


@pytest.mark.parametrize("name", sorted(set(cli.COMMANDS) - {"schema", "completion"}))
def test_every_command_has_quiet_and_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    output = capsys.readouterr().out
    assert "--quiet " in output
    assert "--json " in output


def test_quiet_holds_for_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.delenv(quiet.VARIABLE, raising=False)
    monkeypatch.setattr("accel_train.tools.doctor.doctor", lambda *, as_json: seen.append(quiet.is_quiet()))
    assert cli.main(["doctor", "--quiet"]) == 0
    assert cli.main(["doctor"]) == 0
    assert seen == [True, False]


def test_json_of_train_is_all_of_its_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: object, *, fresh: bool, inject: object) -> dict[str, float]:
        print("step 1")
        return {"recall": 0.5}

    module = types.ModuleType("accel_train.train")
    module.__dict__["train"] = train
    monkeypatch.setitem(sys.modules, "accel_train.train", module)
    assert cli.main(["train", QUICKSTART, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"run_dir": "runs/quickstart", "scores": {"recall": 0.5}}
    assert captured.err == "step 1\n"


def test_ranks_say_which_one_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("accel-train (rank 1 of 4): no command")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "doctor", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the output: No space left on device."),
        (PermissionError(errno.EACCES, "Permission denied", "out/a.png"), "out/a.png: Permission denied."),
    ],
)
def test_a_place_that_is_full_or_closed_is_said_in_a_line(
    error: OSError, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "doctor", fail)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == f"accel-train: {line} Mend that place, or name another one.\n"


def test_an_argument_that_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "run", "--query", "\udcff"]) == 2
    assert r"the argument '\udcff' is not text in the encoding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("--help >/dev/full", 1, "accel-train: the output: No space left on device."),
        ("--help <&- >&-", 0, ""),
        ("explain AT120 >/dev/null", 0, ""),
    ],
)
def test_every_kind_of_output(how: str, code: int, said: str) -> None:
    command = f"PYTHONIOENCODING=ascii {sys.executable} -m accel_train {how}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr[: len(said)], done.stderr.count("\n")) == (code, said, bool(said))


def test_json_stays_json_where_the_output_has_few_letters() -> None:
    text = "é 文 😀 \ud800"
    program = (
        "import json\nfrom accel_train import cli\ncli._open_standard_streams()\n"
        f"print(json.dumps({text!r}, ensure_ascii=False))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert json.loads(found.stdout.decode("ascii")) == text


def test_a_closed_pipe_ends_quietly() -> None:
    command = f"{sys.executable} -m accel_train schema | head -c 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "{"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, "done \n"),
        (Stopped("stopped by SIGTERM\nat step 3"), 75, "stopped stopped by SIGTERM at step 3\n"),
        (CheckFailed("NaN"), 1, "failed NaN\n"),
        (UserError("seed: 'a'"), 2, "refused seed: 'a'\n"),
        (NotNow("run_dir: in use"), 2, "failed run_dir: in use\n"),
    ],
    ids=["done", "stopped", "failed", "refused", "not now"],
)
def test_a_batch_script_learns_the_outcome_from_a_file(
    error: Exception | None, code: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(argv: list[str]) -> None:
        if error is not None:
            raise error

    monkeypatch.setitem(cli.COMMANDS, "train", command)
    monkeypatch.setenv("ACCEL_TRAIN_OUTCOME", str(tmp_path / "outcome"))
    assert cli.main(["train"]) == code
    assert (tmp_path / "outcome").read_text() == line
    assert [path.name for path in tmp_path.iterdir()] == ["outcome"]


def test_a_crash_leaves_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(argv: list[str]) -> None:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setitem(cli.COMMANDS, "train", command)
    monkeypatch.setenv("ACCEL_TRAIN_OUTCOME", str(tmp_path / "outcome"))
    with pytest.raises(RuntimeError):
        cli.main(["train"])
    assert list(tmp_path.iterdir()) == []
