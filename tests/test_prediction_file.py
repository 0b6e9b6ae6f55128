import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from accel_train.errors import UserError
from accel_train.prediction_file import check_prediction_file, write_prediction_rows

ROWS = [{"text": "一, 二", "score": 0.5}, {"text": 'a "quoted"\nline', "score": 1.0}]


def test_csv(tmp_path: Path) -> None:
    write_prediction_rows(tmp_path / "rows.csv", iter(ROWS))
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as stream:
        assert list(csv.DictReader(stream)) == [{**row, "score": str(row["score"])} for row in ROWS]


def test_json_lines_replace_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("old")
    write_prediction_rows(file, ROWS)
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == ROWS


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_failure_on_the_way_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ValueError("no more")

    (tmp_path / name).write_text("old")
    with pytest.raises(ValueError, match="no more"):
        write_prediction_rows(tmp_path / name, rows())
    assert (tmp_path / name).read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_names_that_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    for file, message in [
        (tmp_path / "rows.txt", r"must end in \.csv or \.jsonl"),
        (tmp_path / "absent" / "rows.csv", "lie in a folder that exists"),
        (tmp_path / "there.csv", "exists already"),
    ]:
        with pytest.raises(UserError, match=message):
            check_prediction_file(file)
