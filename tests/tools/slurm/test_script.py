import subprocess
from pathlib import Path

import pytest

from accel_train.errors import UserError
from accel_train.tools.slurm.script import LAUNCH_FOLDER, Job, fill_in


def differences(job: Job) -> tuple[list[str], list[str]]:
    """Lines that the shipped script alone has, and lines that the filled-in one alone has."""
    shipped = (LAUNCH_FOLDER / "train.sbatch").read_text().splitlines()
    filled = fill_in(job).splitlines()
    return [line for line in shipped if line not in filled], [line for line in filled if line not in shipped]


def test_nothing_given_is_the_shipped_script() -> None:
    assert fill_in(Job({}, {})) == (LAUNCH_FOLDER / "train.sbatch").read_text()


def test_options_are_replaced_left_out_and_added() -> None:
    job = Job(
        {"nodes": "7", "gpus-per-node": None, "partition": "gpu,high", "account": None}, {}, ["qos=high", "exclusive"]
    )
    gone, new = differences(job)
    assert gone == ["#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8"]
    assert new == [
        "#SBATCH --nodes=7",
        "#SBATCH --partition=gpu,high",
        "#SBATCH --qos=high",
        "#SBATCH --exclusive",
    ]


def test_options_stand_before_the_first_command() -> None:
    """Slurm reads no #SBATCH line after it."""
    lines = fill_in(Job({"partition": "gpu"}, {})).splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(number for number, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command


@pytest.mark.parametrize("value", ["plain.yaml", "with space.yaml", "it's $HOME `x`", "", "höhe"])
def test_settings_arrive_as_they_are(value: str, tmp_path: Path) -> None:
    text = fill_in(Job({}, {"config": value, "changes": [value, "b=[1, 2]"]}))
    head = text.partition("set -euo pipefail")[0]
    script = head + 'printf "%s\\n" "$config" "${#changes[@]}" "${changes[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == [value, "2", value, "b=[1, 2]", ""]


def test_comments_of_settings_stay() -> None:
    _, new = differences(Job({}, {"ranks_per_node": "4"}))
    assert new == ["ranks_per_node=4               # one for each GPU"]


@pytest.mark.parametrize("value", ['a"b', "two\nlines", "back\\slash"])
def test_an_option_that_no_line_can_hold_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="--job-name: a line of #SBATCH can't hold"):
        fill_in(Job({"job-name": value}, {}))


def test_a_value_with_a_space_is_quoted() -> None:
    assert '#SBATCH --output="my runs/%j.out"' in fill_in(Job({"output": "my runs/%j.out"}, {}))
