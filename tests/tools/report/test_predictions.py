"""Predictions: galleries with images of the dataset, clouds, matrices and samples, and pages without a dataset."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from accel_train.data.rated_images import open_rated_split
from accel_train.data.splits import open_split
from accel_train.data.spoken_split import open_spoken_split
from accel_train.tools.report import labels, retrieval
from accel_train.tools.report.predictions import predictions
from accel_train.tools.report.record import read_record
from accel_train.tools.report.tables import evenly, numbered
from tests.rated import write_dataset as write_rated
from tests.spoken import write_dataset as write_spoken
from tests.tools.report.conftest import MakeRun, write_table

SAMPLE = "sample:emoji-zh"
KINDS = ("rated", "predicted")


def retrieval_rows(count: int = 60) -> list[dict[str, Any]]:
    """Of the first texts of the sample: every third is right at once, others far down."""
    opened = open_split(SAMPLE, "valid")
    right: dict[int, int] = {}
    for image, text in opened.matches().tolist():
        right.setdefault(text, image)
    rows = []
    for text in range(count):
        own = right[text]
        images = [own, *((own + k) % opened.num_images for k in range(1, 5))]
        rank = 1 if text % 3 == 0 else 40 + text
        if rank > 1:
            images = [*images[1:], (own + 9) % opened.num_images]
        ids = {f"image_{k}": opened.images.value("image_id", image) for k, image in enumerate(images, 1)}
        similarities = {f"similarity_{k}": 0.9 - 0.1 * k for k in range(1, 6)}
        about = {"text_id": opened.texts.value("text_id", text), "text": opened.texts.value("text", text), "rank": rank}
        rows.append(about | ids | similarities)
    return rows


def rating_rows(dataset: Path) -> list[dict[str, Any]]:
    """All predictions are half a point too high, but for the quality of the first sample, which is two."""
    opened = open_rated_split(str(dataset), "valid")
    columns = [(f"{name}_{kind}", kind == "predicted") for name in ("quality", "consistency") for kind in KINDS]
    rows: list[dict[str, Any]] = []
    for row in range(len(opened.samples)):
        image = opened.images.value("image_id", opened.samples.value("image_row", row))
        about = {"image_id": image, "prompt": opened.samples.value("prompt", row)}
        rows.append(about | {name: 3 + 0.5 * is_predicted for name, is_predicted in columns})
    rows[0]["quality_predicted"] = 5.0
    return rows


def label_rows(num_classes: int = 3, count: int = 60) -> list[dict[str, Any]]:
    """Every second text of each class is taken for the next class."""
    return [
        {
            "text_id": k,
            "text": f"text {k}",
            "label": f"class {k % num_classes}",
            "predicted": f"class {(k + k // num_classes % 2) % num_classes}",
            "probability": 0.3 + k / 100,
        }
        for k in range(count)
    ]


def caption_rows() -> list[dict[str, Any]]:
    return [
        {
            "image_id": f"none {k}",
            "audio_id": "a",
            "caption": f"a caption {k}",
            "written": f"a caption {k % 5}",
            "loss": k / 3,
        }
        for k in range(20)
    ]


def move_dataset(run: Path, path: Path | str) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["data"]["path"] = str(path)
    (run / "config.yaml").write_text(yaml.safe_dump(values))


def test_a_gallery_shows_wrong_and_right_queries_with_their_images(make_run: MakeRun) -> None:
    run = make_run()
    write_table(run / "predictions" / "valid.csv", retrieval_rows())
    html = predictions(read_record(run))
    assert html.count("data:image/webp;base64,") == retrieval.NUM_WRONG * 6 + retrieval.NUM_RIGHT * 5
    assert html.count('class="is-right"') == retrieval.NUM_WRONG + retrieval.NUM_RIGHT
    assert "Of the best evaluation at step 100, split valid." in html
    assert 'alt=""' not in html and "rank 99" in html
    assert "33.3\u00a0%" in html, "a third is at rank 1"
    found = re.findall(r"<strong>([^<]*)</strong> <span class=\"(\w+)\"", html)
    assert [kind for _, kind in found] == ["wrong"] * retrieval.NUM_WRONG + ["right"] * retrieval.NUM_RIGHT


@pytest.mark.parametrize("path", ["/no/such/dataset", "sample:none"])
def test_without_its_dataset_a_gallery_has_no_images_and_says_why(make_run: MakeRun, path: str) -> None:
    run = make_run()
    write_table(run / "predictions" / "valid.csv", retrieval_rows())
    move_dataset(run, path)
    html = predictions(read_record(run))
    assert "data:image" not in html
    assert "Images are not shown" in html and path in html
    assert 'class="no-image"' in html


def test_a_table_of_another_dataset_is_noticed(make_run: MakeRun) -> None:
    run = make_run()
    rows = [row | {"text_id": f"other-{row['text_id']}"} for row in retrieval_rows()]
    write_table(run / "predictions" / "valid.csv", rows)
    assert "does not hold the texts of this table" in predictions(read_record(run))


def test_ratings_have_clouds_residuals_and_the_farthest_samples(make_run: MakeRun, tmp_path: Path) -> None:
    dataset = write_rated(tmp_path / "rated")
    rows = rating_rows(dataset)
    run = make_run()
    move_dataset(run, dataset)
    write_table(run / "predictions" / "valid.csv", rows)
    html = predictions(read_record(run))
    assert html.count('class="dots c0"') == 2 and html.count('class="boxes c0"') == 2
    mean = 0.5 + 1.5 / len(rows)
    assert f"<td>{mean:.3f}</td>" in html, "the mean error of quality"
    assert "predicted 5.00 · rated 3.00" in html
    assert "data:image/webp" in html


def test_the_confusion_matrix_counts_as_a_loop_does(make_run: MakeRun) -> None:
    rows = label_rows()
    run = make_run()
    write_table(run / "predictions" / "dev.csv", rows)
    html = str(predictions(read_record(run)))
    cells = [int(cell or 0) for cell in re.findall(r'<td class="(?:hit|miss)"[^>]*>(\d*)</td>', html)]
    order = re.findall(r'<th scope="row">(class \d)</th><td class', html)
    expected = [sum((row["label"], row["predicted"]) == (a, b) for row in rows) for a in order for b in order]
    assert cells == expected and sum(cells) == len(rows)
    surest = max((row for row in rows if row["label"] != row["predicted"]), key=lambda row: row["probability"])
    assert f"{surest['text']}" in html.split("Mistakes it is surest of")[2]


def test_of_many_classes_those_with_mistakes_are_shown(make_run: MakeRun) -> None:
    rows = [
        {
            "text_id": k,
            "text": "t",
            "label": f"c{k % 40}",
            "predicted": f"c{k % 40 if k % 40 > 3 else 5}",
            "probability": 0.9,
        }
        for k in range(400)
    ]
    run = make_run()
    write_table(run / "predictions" / "dev.csv", rows)
    html = str(predictions(read_record(run)))
    assert f"of 40 classes, the {labels.MOST_CLASSES} with the most mistakes" in html
    matrix = html.split("</table>")[0]
    assert all(f'<th scope="row">c{k}</th>' in matrix for k in (0, 1, 2, 3, 5))


def test_captions_are_shown_beside_the_true_ones(make_run: MakeRun, tmp_path: Path) -> None:
    dataset = write_spoken(tmp_path / "spoken")
    opened = open_spoken_split(str(dataset), "valid")
    rows = []
    for row in range(opened.num_samples):
        image = opened.images.value("image_id", opened.samples.value("image_row", row))
        text = opened.texts.value("text", opened.samples.value("text_row", row))
        rows.append(
            {"image_id": image, "audio_id": "a", "caption": text, "written": text if row < 3 else "", "loss": 1.0 + row}
        )
    run = make_run()
    move_dataset(run, dataset)
    write_table(run / "predictions" / "valid.csv", rows)
    html = predictions(read_record(run))
    assert f"3 of {len(rows)} captions are written without a fault" in html
    assert "(nothing)" in html and "data:image/webp" in html


def test_a_table_of_an_own_task_shows_its_first_rows(make_run: MakeRun) -> None:
    run = make_run()
    write_table(run / "predictions" / "valid.csv", [{"what": f"<b>{k}</b>", "how": k} for k in range(50)])
    html = predictions(read_record(run))
    assert "The first 20 of 50 rows of valid.csv" in html and "&lt;b&gt;19&lt;/b&gt;" in html


@pytest.mark.parametrize(
    "content", ["", "\n", "text,label,predicted,probability\n", "a,b\n1\n", "\0\0", '"never closed']
)
def test_an_odd_table_is_no_end_of_the_page(make_run: MakeRun, content: str) -> None:
    run = make_run()
    (run / "predictions").mkdir()
    (run / "predictions" / "valid.csv").write_text(content)
    assert "Of the best evaluation" in predictions(read_record(run))


def test_rows_that_are_torn_are_counted(make_run: MakeRun) -> None:
    run = make_run()
    (run / "predictions").mkdir()
    text = "text,label,predicted,probability\na,x,x,0.5\nb,x,y,oops\nc,x\n"
    (run / "predictions" / "valid.csv").write_text(text)
    assert "2 of 3 rows" in predictions(read_record(run))


def test_items_at_equal_distances() -> None:
    assert evenly(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert evenly([1, 2], 5) == [1, 2]
    assert numbered([{"a": "1"}, {"a": "nan"}, {}], ["a"]) == [{"a": 1.0}]
