"""The examples run as they are, and the notebook's outputs are those of a run without errors."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PHOTOS = EXAMPLES / "search_photos"
NOTEBOOK = PHOTOS / "photos.ipynb"
MAX_NOTEBOOK_BYTES = 600_000

# Executes the code cells in order, in one namespace, and prints the scores that the last of them leave.
EXECUTE = """
import json, sys
names = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
print(json.dumps([names["scores"], [[hit.is_duplicate for hit in hits] for hits in names["found"]]]))
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return shutil.copytree(PHOTOS, tmp_path / "search_photos", ignore=shutil.ignore_patterns("work", "__pycache__"))


@pytest.mark.slow
def test_the_notebook_runs_and_its_model_finds_what_it_never_saw(copied: Path) -> None:
    command = [sys.executable, "-c", EXECUTE, NOTEBOOK.name]
    done = subprocess.run(command, cwd=copied, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    scores, duplicates = json.loads(done.stdout.splitlines()[-1])
    assert scores["text_to_image_recall@10"] > 0.35, "chance is about 0.12"
    assert [flags[0] for flags in duplicates] == [True, True]


def test_the_notebook_shows_a_whole_run() -> None:
    assert NOTEBOOK.stat().st_size < MAX_NOTEBOOK_BYTES
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert all(output.get("name") != "stderr" for output in outputs), "warnings are shown"
    assert not re.search(r"(?<!\w)/(home|root|tmp|usr|Users)/", json.dumps(outputs)), "paths of one machine are shown"


@pytest.mark.slow
def test_the_scripts_run(copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(copied)

    def run(script: str, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *argv])
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    run("make_photos.py", "work/photos", "--num-images", "90")
    assert len(list(Path("work/photos").iterdir())) == 180
    shorter = ["num_epochs=1", "evaluation.evaluate_every=1 epochs", "checkpoint.save_every=1 epochs"]
    output = run("train_on_photos.py", "work/photos", "data.global_batch_size=32", "data.micro_batch_size=32", *shorter)
    assert "work/dataset: written from image_folder" in output
    assert "text to image" in output
    image = str(min(Path("work/photos").glob("*.png")))
    argv = [
        "work/photos",
        "--query",
        "红色的花",
        "--query-image",
        image,
        "--sheet",
        "work/found.png",
        "--index",
        "work/index",
    ]
    output = run("search_photos.py", *argv)
    assert output.startswith("红色的花\n  0.")
    assert re.search(rf"{re.escape(image)}\n  1\.000  {re.escape(Path(image).name)}  \(the same file\)", output)
    with Image.open("work/found.png") as sheet:
        assert sheet.width > 800


def test_the_index_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([^)]+)\)", page))
    assert all((EXAMPLES / link).exists() for link in links)
    for path in [*EXAMPLES.glob("*/*.py"), *EXAMPLES.glob("*/*.ipynb")]:
        own = path.relative_to(EXAMPLES)
        assert {str(own), str(own.parent)} & links, f"{own} is not in the index"
