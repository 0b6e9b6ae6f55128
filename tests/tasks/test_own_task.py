"""A task of one's own: the example of docs/add_a_task.md is run, then spoilt in every way that a newcomer finds."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from accel_train.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "triplet"
PAGE = (ROOT / "docs" / "add_a_task.md").read_text(encoding="utf-8")
CHANCE = 0.5


def on_page(language: str) -> str:
    """The first block of the page in this language."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: the page's code and configuration, and the example's data."""
    (tmp_path / "triplet.py").write_text(on_page("python"), encoding="utf-8")
    (tmp_path / "triplet.yaml").write_text(on_page("yaml"), encoding="utf-8")
    shutil.copytree(EXAMPLE / "data", tmp_path / "data")
    return tmp_path


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row["split"] == "train"]


def test_the_page_shows_the_example() -> None:
    for language, file in (("python", "triplet.py"), ("yaml", "triplet.yaml")):
        assert on_page(language) == (EXAMPLE / file).read_text(encoding="utf-8"), f"copy {file} into the page"


SPOILT = {
    "no score_names": ('    score_names = ("accuracy",)\n', "", r"TripletTask names no scores. Give it score_names"),
    "a method is missing": (
        "def losses(",
        "def loss(",
        r"task: triplet:TripletTask lacks losses, which every task defines",
    ),
    "another class": (
        "class TripletTask(Task)",
        "class TripletTask:\n    pass\nclass Other(Task)",
        "no task class TripletTask",
    ),
    "a configuration of another kind": (
        "config_class = TripletConfig",
        "config_class = ModelSection",
        "its config_class is .*ModelSection.*must be RunConfig or a subclass",
    ),
    "no such package": (
        "import zlib",
        "import zlibb",
        r"the module triplet can't be imported \(No module named 'zlibb'\)",
    ),
    "a syntax error": ("class TextMap(nn.Module):", "class TextMap(nn.Module)", r"can't be imported \(SyntaxError"),
    "scores under another name": (
        'return {"accuracy"',
        'return {"acuracy"',
        "TripletTask.scores gives acuracy, loss, but score_names is accuracy.*Is acuracy meant to be accuracy",
    ),
    "a score that is a tensor": (
        ").mean().item()",
        ").mean()",
        "TripletTask.scores: 'accuracy' is a float64 tensor of one number; it must be a float",
    ),
    "a score that is NaN": ('{"accuracy": ', '{"accuracy": float("nan") * ', "the score accuracy is nan"),
    "no sample_id": (' | {"sample_id": torch.tensor(row)}', "", "Triplets, .* split train: row 0 has no sample_id"),
    "sample_id is not a number": (
        "torch.tensor(row)}",
        "torch.tensor([row])}",
        r"row 0 has sample_id a int64 tensor of shape \(1,\); each needs one, torch.tensor\(row\)",
    ),
    "no fingerprint": ("self.fingerprint", "self.finger_print", "it needs `fingerprint`"),
    "a column that is no tensor": ("tensor(row)}", 'tensor(row), "split": "x"}', "`read` must return .*split: str"),
    "a mean instead of rows": (
        '{"gain": gain(outputs)}',
        '{"gain": gain(outputs).mean()}',
        "TripletTask.predictions: 'gain' is a float32 tensor of one number for a batch of 16 samples; it must have a row",
    ),
    "a loss for each row": (
        ").mean()}\n",
        ")}\n",
        r"losses: 'triplet' is a float32 tensor of shape \(16,\); it must be",
    ),
    "a loss without a name": (
        'return {"triplet": F.relu(self.config.margin - gain(outputs)).mean()}',
        "return gain(outputs).mean()",
        "losses must return named terms.*it is a float32 tensor of one number",
    ),
    "a loss that is NaN": (
        "F.relu(self.config.margin - gain(outputs)).mean()}",
        "(0 * gain(outputs)).sum() / 0}",
        "losses: triplet nan.* look at the data and at how the loss is computed",
    ),
    "a column that is not gathered": (
        "    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:\n",
        "    compares_whole_batch = True\n\n    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:\n"
        "        batch['negative']\n",
        "TripletTask.losses reads the column 'negative'. It compares the whole batch, so name that column in loss_columns",
    ),
    "a column that is not there": (
        '("accuracy",)\n',
        '("accuracy",)\n    compares_whole_batch = True\n    loss_columns = ("label",)\n',
        "TripletTask.loss_columns: 'label' is not a column of the batch: anchor, positive, negative, sample_id",
    ),
    "an output that can't go around the ranks": (
        '("accuracy",)\n',
        '("accuracy",)\n    compares_whole_batch = True\n    ring_outputs = ("anchor",)\n',
        "TripletTask.ring_outputs: 'anchor' must be an output .* and splits_loss must be true",
    ),
    "a shared output that is not said to be shared": (
        "for name in COLUMNS}\n\n\nclass TripletTask(Task):\n",
        'for name in COLUMNS} | {"scale": torch.ones(1)}\n\n\nclass TripletTask(Task):\n    compares_whole_batch = True\n',
        r"output 'scale' is a float32 tensor of shape \(1,\) for 16 samples. .* stands in shared_outputs",
    ),
}
"""What is replaced, by what, and the message."""


@pytest.fixture
def forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's folder to work in; neither their module nor the engine is remembered from one test to the next."""
    sys.modules.pop("triplet", None)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    yield
    sys.modules.pop("triplet", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(*arguments: str) -> int:
    """One command in this process; the engine of the one before is forgotten."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return main(list(arguments))


@pytest.mark.slow
@pytest.mark.usefixtures("forgotten")
def test_it_trains_resumes_evaluates_and_exports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["triplet.yaml", "log.log_every=1 step", "data.num_workers=0", "schedule.name=constant"]
    assert run("train", *settings, "run_dir=whole") == 0
    said = capsys.readouterr().out
    best = float(re.findall(r"best accuracy (0\.\d+)", said)[0])
    assert best > CHANCE + 0.25
    assert "advice:" not in said

    assert run("train", *settings, "run_dir=half", "num_epochs=3") == 0
    assert run("train", *settings, "run_dir=half") == 0
    assert "resuming from" in capsys.readouterr().out
    assert losses(folder / "half") == losses(folder / "whole")

    assert run("export", "whole", "exported") == 0
    assert load_file(folder / "exported" / "model.safetensors").keys() == {"embed.weight"}
    for source in ("whole", "exported"):
        capsys.readouterr()
        assert run("evaluate", source, "--json") == 0
        assert json.loads(capsys.readouterr().out)["scores"]["accuracy"] == pytest.approx(best, abs=1e-4)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("slip", SPOILT)
def test_a_slip_is_said_in_a_sentence(slip: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, message = SPOILT[slip]
    code = on_page("python")
    assert old in code
    (folder / "triplet.py").write_text(code.replace(old, new), encoding="utf-8")
    assert run("train", "triplet.yaml", "max_steps=4", "num_epochs=null", "data.num_workers=0") in (1, 2)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.usefixtures("forgotten")
def test_keys_are_those_of_the_own_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "triplet.yaml", "margin=-1", "model.witdh=8", "trainer.fast=true"]) == 2
    said = capsys.readouterr().err
    assert "margin: found -1; it must be greater than 0" in said
    assert "model.witdh: no such key (found 8). Nearest: model.width" in said
    assert "trainer: no such key" in said


@pytest.mark.usefixtures("forgotten")
def test_a_module_that_is_elsewhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "triplet.py").unlink()
    assert main(["plan", "triplet.yaml"]) == 2
    assert (
        f"there is no module triplet, neither installed nor in {folder}. Start the command" in capsys.readouterr().err
    )


@pytest.mark.usefixtures("forgotten")
def test_a_file_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "triplet.yaml", "data.train_split=test"]) == 2
    assert "data.path: data/test.tsv is not there" in capsys.readouterr().err


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(("switch", "count"), [("on", 1), ("off", 0)])
def test_advice_is_given_once_in_a_run(switch: str, count: int, folder: Path) -> None:
    code = on_page("python").replace("- gain(outputs)).mean()}", "- gain(outputs)).mean() * 1e4}")
    (folder / "triplet.py").write_text(code, encoding="utf-8")
    settings = ["triplet.yaml", "num_epochs=null", "log.log_every=1 step", "data.num_workers=0", f"advice={switch}"]
    for max_steps in (2, 4):
        assert run("train", *settings, f"max_steps={max_steps}") == 0
    assert (folder / "runs" / "triplet" / "run.log").read_text(encoding="utf-8").count(
        "advice: the gradient norm"
    ) == count
