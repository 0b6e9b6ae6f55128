"""Zero-shot scores and predictions against a loop over transformers' model, image by image."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from accel_train import cli
from accel_train.errors import UserError
from accel_train.tools.zero_shot import read_problem
from tests.tools.conftest import encoded_image
from tests.tools.plain import image_features, text_features, write_images

NAMES = {
    "c1": ["猫", "一只猫"],
    "c2": ["红色的花"],
    "c3": ["汽车", "车"],
    "c4": ["月亮"],
    "c5": ["大树"],
    "c6": ["笑脸"],
}
TEMPLATES = ["{}", "一张{}的照片", "red {}"]
PER_CLASS = (3, 1, 2, 4, 2, 3)


@pytest.fixture
def images() -> dict[str, bytes]:
    folders = zip(NAMES, PER_CLASS, strict=True)
    paths = [f"{folder}/{number}.png" for folder, count in folders for number in range(count)]
    return {path: encoded_image(seed) for seed, path in enumerate(paths)}


@pytest.fixture
def folder(tmp_path: Path, images: dict[str, bytes]) -> str:
    write_images(tmp_path / "images", images)
    return str(tmp_path / "images")


@pytest.fixture
def evaluate(
    exported: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """evaluate(argument, ...): exit code, output and errors of the command with names and templates from files."""
    (tmp_path / "names.json").write_text(json.dumps(NAMES), encoding="utf-8")
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES), encoding="utf-8")
    files = ["--class-names", str(tmp_path / "names.json"), "--templates", str(tmp_path / "templates.txt")]

    def evaluate(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["evaluate", exported, "--zero-shot", folder, *files, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return evaluate


def test_scores_and_predictions_are_those_of_a_plain_loop(
    evaluate: Callable[..., tuple[int, str, str]], exported: str, images: dict[str, bytes], tmp_path: Path
) -> None:
    features = []
    for names in NAMES.values():
        prompts = [template.format(name) for name in names for template in TEMPLATES]
        features.append(normalize(text_features(exported, prompts).mean(0), dim=0))
    similarity = image_features(exported, list(images.values())) @ torch.stack(features).T
    labels = [list(NAMES).index(path.split("/")[0]) for path in images]
    best = similarity.argsort(dim=1, descending=True).tolist()
    right = [label == places[0] for label, places in zip(labels, best, strict=True)]
    shares = [sum(hit for hit, of in zip(right, labels, strict=True) if of == c) / n for c, n in enumerate(PER_CLASS)]
    wanted = {
        "accuracy@1": sum(right) / len(right),
        "accuracy@5": sum(label in places[:5] for label, places in zip(labels, best, strict=True)) / len(right),
        "mean_per_class_accuracy": sum(shares) / len(shares),
    }

    code, output, errors = evaluate("--json", "--predictions", str(tmp_path / "found.csv"))
    assert code == 0, errors
    found = json.loads(output)
    assert found["scores"] == pytest.approx(wanted)
    assert 0 < found["scores"]["accuracy@1"] < found["scores"]["accuracy@5"], "the test would see nothing"
    assert (found["num_images"], found["num_classes"], found["num_prompts"]) == (len(images), 6, 8 * len(TEMPLATES))
    with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == list(images)
    for row, label, places, scores in zip(rows, labels, best, similarity.tolist(), strict=True):
        assert (row["true"], row["predicted"]) == (list(NAMES)[label], list(NAMES)[places[0]])
        assert [row[f"class_{rank}"] for rank in range(1, 6)] == [list(NAMES)[place] for place in places[:5]]
        assert [float(row[f"score_{rank}"]) for rank in range(1, 6)] == pytest.approx(
            [scores[place] for place in places[:5]], abs=3e-6
        )


def test_the_table_says_what_was_done(
    evaluate: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, output, _ = evaluate()
    assert code == 0
    for words in (
        "accuracy@1",
        "mean per class accuracy",
        "15 images, 6 classes, 24 prompts; templates: ",
        "zero-shot",
    ):
        assert words in output
    (tmp_path / "there.csv").write_text("mine")
    code, _, errors = evaluate("--predictions", str(tmp_path / "there.csv"))
    assert code == 2
    assert "there.csv exists already, and nothing is overwritten" in errors


def test_an_image_that_can_not_be_read_is_named(evaluate: Callable[..., tuple[int, str, str]], folder: str) -> None:
    (Path(folder) / "c4" / "bad.png").write_bytes(b"bad")
    code, _, errors = evaluate()
    assert code == 2
    assert "Evaluation needs every sample, but 1 can't be read" in errors
    assert "c4/bad.png: not an image" in errors


def test_folders_that_are_no_classes_are_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "images" / "empty").mkdir()
    with pytest.raises(UserError, match="the subfolder 'empty' holds no images"):
        read_problem(folder, None, None)
    write_images(tmp_path, {"images/loose.png": b"", "one/only/a.png": b""})
    with pytest.raises(UserError, match=r"'loose\.png' lies in no subfolder"):
        read_problem(folder, None, None)
    with pytest.raises(UserError, match="one subfolder, 'only'; there must be at least two"):
        read_problem(str(tmp_path / "one"), None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--zero-shot", "x", "--split", "valid"], "--split is not for --zero-shot"),
        (["--zero-shot", "x", "--contact-sheet", "x.png"], "--contact-sheet is not for --zero-shot"),
        (["--templates", "builtin:zh"], "--templates is for --zero-shot, so it would be ignored"),
        (["--zero-shot", "x", "--predictions", "x.txt"], "must end in .csv"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    exported: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", exported, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_two_classes_have_no_accuracy_at_five(
    exported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "two", {"猫/a.png": encoded_image(1), "狗/b.png": encoded_image(2)})
    assert cli.main(["evaluate", exported, "--zero-shot", str(tmp_path / "two"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["scores"]) == ["accuracy@1", "mean_per_class_accuracy"]
    assert found["templates"] == "builtin:zh"
