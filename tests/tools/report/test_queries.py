"""Texts that two runs answer differently: counted as a loop would, and shown with what each run found."""

from pathlib import Path
from typing import Any

import pytest

from accel_train.tools.report.comparison import as_json, sections
from accel_train.tools.report.queries import MOST_GALLERIES, NUM_QUERIES
from accel_train.tools.report.record import Record, read_record
from tests.tools.report.conftest import MakeRun, falling, write_table
from tests.tools.report.test_predictions import label_rows, move_dataset, retrieval_rows

Rows = list[dict[str, Any]]


def changed(rows: Rows, ranks: dict[int, int]) -> Rows:
    """The rows with other ranks. At rank 1 stands the image that the text belongs to, else one that it does not."""
    found = []
    for index, row in enumerate(rows):
        rank = ranks.get(index, row["rank"])
        own = row["image_1"] if row["rank"] == 1 else f"right of {index}"
        found.append(row | {"rank": rank, "image_1": own if rank == 1 else row["image_3"]})
    return found


@pytest.fixture
def records(make_run: MakeRun) -> list[Record]:
    """The second run, which scores higher, loses every sixth text of those that are right, and finds two others."""
    rows = retrieval_rows()
    first, second = make_run("first"), make_run("second", lines=falling(1))
    write_table(first / "predictions" / "valid.csv", rows)
    write_table(second / "predictions" / "valid.csv", changed(rows, {**dict.fromkeys(range(0, 60, 6), 7), 1: 1, 4: 1}))
    return [read_record(first), read_record(second)]


def of(records: list[Record]) -> str:
    return str(dict(sections(records)).get("Queries", ""))


def test_they_are_counted_as_a_loop_does(records: list[Record]) -> None:
    (found,) = as_json(records)["queries"]
    ids = [row["text_id"] for row in retrieval_rows()]
    assert found["right_alone"] == {"second": [ids[1], ids[4]], "first": [ids[k] for k in range(0, 60, 6)]}
    assert (found["split"], found["right_in_both"], found["wrong_in_both"]) == ("valid", 10, 38)
    html = of(records)
    for name, count in (("right in second alone", 2), ("right in first alone", 10), ("wrong in both", 38)):
        assert f'<th scope="row">{name}</th><td>{count}</td>' in html


def test_each_text_stands_with_what_both_runs_found(records: list[Record]) -> None:
    html = of(records)
    assert "Right in second, wrong in first" in html
    assert html.index("Right in second") < html.index("Right in first, wrong in second")
    queries = html.split("<li><p><strong>")[1:]
    assert len(queries) == 2 + NUM_QUERIES
    for query in queries:
        assert query.count("in first</p>") == query.count("in second</p>") == 1
        assert query.count('<span class="right">rank 1</span>') == 1
    texts = [row["text"] for row in retrieval_rows()]
    assert [query.split("<")[0] for query in queries[:2]] == [texts[4], texts[1]], "the farthest apart comes first"
    assert "data:image/webp;base64," in html


def test_texts_of_one_table_alone_are_counted(records: list[Record]) -> None:
    rows = retrieval_rows()
    write_table(records[0].folder / "predictions" / "valid.csv", [rows[0] | {"text": "other words"}, *rows[1:50]])
    assert "12 texts are in one table alone" in of(records)
    write_table(
        records[0].folder / "predictions" / "valid.csv", [row | {"text_id": f"x{row['text_id']}"} for row in rows]
    )
    assert "second and first have no text of split valid in common" in of(records)


def test_of_many_runs_some_pairs_have_a_gallery(records: list[Record], make_run: MakeRun) -> None:
    for number in range(MOST_GALLERIES):
        run = make_run(f"more{number}")
        write_table(run / "predictions" / "valid.csv", retrieval_rows())
        move_dataset(run, "/no/such/dataset")
        records.append(read_record(run))
    html = of(records)
    assert html.count("<caption>") == MOST_GALLERIES + 1
    assert html.count("<h3>Right in second") == MOST_GALLERIES
    assert f"The first {MOST_GALLERIES} pairs" in html


def test_other_tables_or_none_have_no_such_part(make_run: MakeRun) -> None:
    def labelled(name: str) -> Path:
        run = make_run(name)
        write_table(run / "predictions" / "valid.csv", label_rows())
        return run

    assert of([read_record(labelled("a")), read_record(labelled("b"))]) == ""
    assert of([read_record(make_run("c")), read_record(make_run("d"))]) == ""
