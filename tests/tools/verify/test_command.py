"""`accel-train verify`: options that would be ignored, and values that can't be."""

from pathlib import Path

import pytest

from accel_train.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume", "--step", "3"], "--step is not for --resume"),
        (["--resume", "--precision", "fp32"], "--precision is not for --resume"),
        (["--resume", "--at-once", "3"], "--at-once is not for --resume"),
        (["--steps", "3"], "--steps is for --resume"),
        (["--tolerance", "0"], "it must be a number above 0"),
        (["--tolerance", "nan"], "it must be a number above 0"),
        (["--step", "-1"], "it must be a whole number from 0"),
        (["--at-once", "0"], "it must be a whole number above 0"),
        (["--precision", "bf16"], "as-configured"),
    ],
)
def test_arguments_that_are_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "config.yaml", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path), "--resume"]) == 2
    assert "neither a run" in capsys.readouterr().err
