"""`accel-train import --task scorer`: what is written, how splits are drawn, and what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel_train.cli import main
from accel_train.data.rated_images import open_rated_split
from accel_train.data.readers.ratings import RatingColumns
from accel_train.errors import UserError
from accel_train.tools.imports.ratings import RatingsSummary, import_ratings
from tests.rated import write_ratings

Rows = list[dict[str, str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_ratings(tmp_path / "source")


def run(source: Path, output: Path, **options: Any) -> RatingsSummary:
    columns = RatingColumns(**options.pop("columns", {}))
    return import_ratings(str(source), str(output), columns=columns, show_progress=False, **options)


def rows_of(source: Path) -> Rows:
    with (source / "ratings.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rewrite(source: Path, change: Callable[[int, dict[str, str]], None]) -> None:
    rows = rows_of(source)
    for number, row in enumerate(rows):
        change(number, row)
    with (source / "ratings.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def test_every_row_is_there_with_its_rating(source: Path, tmp_path: Path) -> None:
    summary = run(source, tmp_path / "out", rating_range=(1.0, 5.0))
    assert list(summary.splits) == ["train"]
    split = open_rated_split(str(tmp_path / "out"), "train")
    rows = rows_of(source)
    assert split.num_samples == len(rows) == 24
    for number, row in enumerate(rows):
        assert split.samples.value("prompt", number) == row["prompt"]
        assert split.samples.value("quality", number) == pytest.approx((float(row["mos_quality"]) - 1) / 4)
        assert split.samples.value("consistency", number) == pytest.approx((float(row["mos_consistency"]) - 1) / 4)
        assert split.samples.value("explanation", number) == (row["explanation"] or None)
        image_row = split.samples.value("image_row", number)
        assert split.images.value("image_id", image_row) == row["image"]
        assert split.images.value("image", image_row) == (source / "images" / row["image"]).read_bytes()
        assert split.on_source_scale("quality", split.samples.value("quality", number)) == float(row["mos_quality"])
    assert split.num_explanations == 12
    assert split.means["quality"] == pytest.approx(float(split.ratings("quality").mean()))


def test_a_range_is_found_for_each_rating(source: Path, tmp_path: Path) -> None:
    summary = run(source, tmp_path / "out")
    qualities = [float(row["mos_quality"]) for row in rows_of(source)]
    assert summary.rating_ranges == {"quality": (min(qualities), max(qualities)), "consistency": (1.5, 4.5)}
    found = open_rated_split(str(tmp_path / "out"), "train").ratings("quality")
    assert (float(found.min()), float(found.max())) == (0, 1)


def ids(path: Path, split: str) -> set[str]:
    opened = open_rated_split(str(path), split)
    return {opened.images.value("image_id", row) for row in range(len(opened.images))}


def test_the_validation_share_does_not_depend_on_order_and_shares_no_image(tmp_path: Path) -> None:
    source = write_ratings(tmp_path / "source", 200)
    # Every second image is a copy of the one before, under another name.
    for number in range(1, 200, 2):
        copy = (source / "images" / f"{number - 1:03d}.png").read_bytes()
        (source / "images" / f"{number:03d}.png").write_bytes(copy)
    run(source, tmp_path / "out", valid_share=0.2)
    train, valid = ids(tmp_path / "out", "train"), ids(tmp_path / "out", "valid")
    assert 20 <= len(valid) <= 60 and len(train) + len(valid) == 200
    assert all((f"{n:03d}.png" in valid) == (f"{n + 1:03d}.png" in valid) for n in range(0, 200, 2))
    rows = rows_of(source)
    rewrite(source, lambda number, row: row.update(rows[-1 - number]))
    run(source, tmp_path / "reversed", valid_share=0.2)
    assert ids(tmp_path / "reversed", "valid") == valid


def test_a_group_stays_on_one_side(tmp_path: Path) -> None:
    source = write_ratings(tmp_path / "source", 120)
    rewrite(source, lambda number, row: row.update(explanation=f"picture {number % 30}"))
    run(source, tmp_path / "out", valid_share=0.3, columns={"group": "explanation"})
    groups = []
    for name in ("train", "valid"):
        split = open_rated_split(str(tmp_path / "out"), name)
        groups.append({split.samples.value("explanation", row) for row in range(split.num_samples)})
    assert not groups[0] & groups[1]
    assert len(groups[0] | groups[1]) == 30


def test_an_image_in_two_groups_is_a_bad_record(source: Path, tmp_path: Path) -> None:
    rewrite(source, lambda number, row: row.update(image="000.png", explanation=f"group {number // 23}"))
    with pytest.raises(UserError, match=r"1 bad records.*\n.*:25: the image 000.png came before in group 'group 0'"):
        run(source, tmp_path / "out", valid_share=0.3, columns={"group": "explanation"})


def test_splits_of_the_source_and_what_they_share(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    for name in ("train", "valid"):
        lines = [
            {"image": f"images/{number:03d}.png", "text": "红色", "quality": number, "consistency": 9 - number}
            for number in (range(8) if name == "train" else range(6, 10))
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (source / "images").rename(folder / "images")
    summary = run(folder, tmp_path / "out")
    assert {name: counts["num_samples"] for name, counts in summary.splits.items()} == {"train": 8, "valid": 4}
    assert summary.num_shared_images == 2
    assert summary.rating_ranges == {"quality": (0, 9), "consistency": (0, 9)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mos_quality": "good"}, "mos_quality is 'good'; a rating is a number"),
        ({"mos_quality": "nan"}, "mos_quality is 'nan'; a rating is a number"),
        ({"mos_consistency": ""}, "mos_consistency is ''; a rating is a number"),
        ({"mos_quality": "5.5"}, "quality is 5.5, outside 1 to 5"),
        ({"prompt": " "}, "prompt is empty"),
        ({"image": "none.png"}, "the image file none.png can't be read"),
        ({"image": "../secret.png"}, "leads out of"),
        ({"image": "broken.png"}, "image 'broken.png': not an image of a known format"),
    ],
)
def test_bad_records_are_named(source: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    (source / "images" / "broken.png").write_bytes(b"no image")
    rewrite(source, lambda number, row: row.update(change if number == 3 else {}))
    with pytest.raises(UserError, match=f"1 bad records(.|\n)*ratings.csv:5: .*{message}"):
        run(source, tmp_path / "out", rating_range=(1.0, 5.0))
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1
    summary = run(source, tmp_path / "out", rating_range=(1.0, 5.0), max_bad_records=1)
    assert summary.num_bad == 1 and summary.splits["train"]["num_samples"] == 23


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"quality": "sharpness"}}, "no column 'sharpness' for quality; it has image, prompt, mos_quality"),
        ({"rating_range": (5.0, 1.0)}, "--rating-range is 5 1; the smallest rating comes first"),
        ({"columns": {"group": "prompt"}}, "--group-column .* Give both or neither"),
        ({"valid_share": 1.0}, "--valid-share is 1.0"),
        ({"format": "parquet"}, "ratings are read from csv and jsonl"),
        ({"format": "jsonl"}, "holds no table of ratings"),
        ({"splits": ["test"]}, "no split 'test'; it has train"),
        ({"valid_share": 1e-9}, "the split valid has no rated image"),
    ],
)
def test_options_that_can_not_be_met(source: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "out", **options)
    assert len(list(tmp_path.iterdir())) == 1


def test_equal_ratings_have_no_range(source: Path, tmp_path: Path) -> None:
    rewrite(source, lambda number, row: row.update(mos_quality="3"))
    with pytest.raises(UserError, match="every rating of quality is 3, so no range can be found"):
        run(source, tmp_path / "out")
    assert run(source, tmp_path / "out", rating_range=(1.0, 5.0)).splits["train"]["mean_quality"] == 0.5


def test_one_image_with_two_prompts_is_kept_once(source: Path, tmp_path: Path) -> None:
    rewrite(source, lambda number, row: row.update(image="000.png") if number == 7 else None)
    summary = run(source, tmp_path / "out")
    assert (summary.splits["train"]["num_images"], summary.splits["train"]["num_samples"]) == (23, 24)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "scorer", "--valid-share", "0.3", "--rating-range", "1", "5", "--build-tokenizer", "60"]
    assert main(["import", str(source / "ratings.csv"), str(tmp_path / "out"), *arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rating_ranges"]["quality"] == [1, 5]
    assert summary["vocab_size"] == len((tmp_path / "out" / "tokenizer" / "vocab.txt").read_text().splitlines())
    assert main(["import", str(source), str(tmp_path / "again"), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "written for the task scorer" in shown and "quality: 1 to 5 became 0 to 1" in shown
