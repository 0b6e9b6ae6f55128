"""`accel-train search` as it is typed: lines, JSON, a picture, and mistakes."""

import json
import types
from pathlib import Path

import pytest
from PIL import Image

from accel_train import cli
from accel_train.tools.search import command as module
from accel_train.tools.search.search import Query
from tests.tools.conftest import encoded_image


def test_lines(exported: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    query = tmp_path / "query.png"
    query.write_bytes(encoded_image(103))
    (tmp_path / "queries.txt").write_text("大树\n月亮\n", encoding="utf-8")
    argv = ["search", exported, "--images", str(photos), "--top", "3", "--index", str(tmp_path / "index")]
    asked = ["--query", "一只猫", "--queries", str(tmp_path / "queries.txt"), "--query-image", str(query)]
    assert cli.main([*argv, *asked]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == [
        "一只猫",
        "大树",
        "月亮",
        str(query),
        f"export {exported}",
        f"images of {photos}: 8, 8 embedded now",
        f"index: {tmp_path / 'index'}",
    ]
    assert sum(line.startswith("  ") for line in lines) == 12
    assert "  1.0000  03.png  (the same file)" in lines
    assert captured.err.startswith(f"left out, since it can't be read: 1 image\n  {photos / 'bad.png'}: not an image")


def test_json_and_an_index_alone(
    exported: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["search", exported, "--images", str(photos), "--json"]
    assert cli.main(argv) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["queries"] == []
    assert first["index"].startswith(str(tmp_path / "cache" / "accel_train" / "search" / "photos-"))
    (photos / "00.png").unlink()
    assert cli.main([*argv, "--query", "花", "--top", "2"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["searched"]["image"] == {
        "name": f"images of {photos}",
        "num_items": 7,
        "num_embedded": 0,
        "num_kept": 7,
        "num_removed": 1,
        "unreadable": [],
    }
    ((one,),) = (second["queries"],)
    assert one["text"] == "花"
    assert [sorted(found) for found in one["found"]] == [["id", "is_duplicate", "score"]] * 2
    assert one["found"][0]["score"] >= one["found"][1]["score"]


def test_texts_for_an_image(exported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.png").write_bytes(encoded_image(3))
    argv = [
        "search",
        exported,
        "--split",
        "valid",
        "--find",
        "texts",
        "--query-image",
        str(tmp_path / "q.png"),
        "--json",
    ]
    assert cli.main([*argv, "--top", "4"]) == 0
    (query,) = json.loads(capsys.readouterr().out)["queries"]
    assert query["image"] == str(tmp_path / "q.png")
    assert all(found["text"] and found["id"].startswith("txt") for found in query["found"])


def test_the_contact_sheet(exported: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    argv = ["search", exported, "--images", str(photos), "--contact-sheet", str(sheet), "--top", "5"]
    assert cli.main([*argv, "--query", "红色的花", "--query-image", str(photos / "03.png")]) == 0
    assert f"contact sheet: {sheet}" in capsys.readouterr().out
    picture = Image.open(sheet)
    assert picture.height > 500
    colours = {colour for _, colour in picture.crop((340, 330, 480, 500)).getcolors(1 << 24)}  # type: ignore[misc,union-attr]
    assert (22, 138, 74) in colours, "the image that is the query has no green frame"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to search. Name it with --images, --split, --texts or --features."),
        (["--images", "/absent", "--query", "a"], "--images: /absent is not a folder."),
        (["--images", ".", "--query", " "], "--query is empty"),
        (
            ["--images", ".", "--query-image", "/absent.png"],
            "--query-image: /absent.png: it can't be read (No such file",
        ),
        (["--images", ".", "--queries", "/absent"], "/absent: can't be read"),
        (["--images", ".", "--port", "3"], "--port is for --serve"),
        (["--images", ".", "--serve", "--port", "99999"], "--port is 99999; it must be 0 to 65535."),
        (["--images", ".", "--serve", "--query", "a"], "--query is not for --serve"),
        (["--images", ".", "--serve", "--json"], "--json is not for --serve"),
        (["--images", ".", "--templates", "builtin:zh"], "--templates is for queries of text"),
        (["--images", ".", "--top", "0"], "argument --top: found '0'"),
        (["--images", ".", "--top", "1001"], "--top is 1001; it can be at most 1000."),
        (["--features", "x", "--index", "y"], "--index: --features is searched as it is"),
        (["--images", ".", "--query", "a", "--contact-sheet", "x.jpg"], "must end in .png"),
        (["--images", ".", "--contact-sheet", "x.png"], "draws 1 to 100 queries"),
        (["--images", ".", "--query", "a", "--top", "21", "--contact-sheet", "x.png"], "--top is 21"),
        (
            ["--split", "valid", "--find", "texts", "--query", "a", "--contact-sheet", "x.png"],
            "here texts are searched",
        ),
        (["--images", ".", "--query", "a", "--templates", "builtin:fr"], "'builtin:fr' is not built in"),
        (["--images", ".", "--find", "sounds"], "invalid choice: 'sounds'"),
    ],
)
def test_mistakes_are_said_before_the_model_is_opened(
    argv: list[str], message: str, exported: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accel_train.tools.search.search.open_encoder", None)
    assert cli.main(["search", exported, *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_many_bad_images_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    class One:
        class index:  # noqa: N801
            unreadable = tuple(f"{number}.png: bad\x1b" for number in range(25))

    class Searched:
        searched = {"image": One}

    module._say_what_is_left_out(Searched())  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "left out, since it can't be read: 25 images"
    assert lines[1] == "  0.png: bad\\x1b"
    assert lines[-1] == "  ... and 5 more"
    assert len(lines) == 22


@pytest.mark.parametrize(("num_queries", "at_most"), [(1, 1), (100, 100), (101, 100), (20_000, 100)])
def test_of_many_queries_some_are_searched_exactly_too(num_queries: int, at_most: int) -> None:
    class Index:
        num_embedded = num_kept = num_removed = 0
        unreadable = ()

    class One:
        collection, index, approximate = Index, Index, object()

        def __len__(self) -> int:
            return 5

    class Searched:
        folder = None
        searched = {"image": One()}
        encoder = collection = types.SimpleNamespace(source="s")

        def features(self, queries: list[Query]) -> list[Query]:
            return queries

        def recall_of_approximate(self, kind: str, top: int, queries: list[Query] | None = None) -> float:
            return 0.0 if queries is None else len(queries)

    One.collection.name = "n"  # type: ignore[attr-defined]
    queries = [Query(text=str(number)) for number in range(num_queries)]
    found = module.about(Searched(), "image", queries, 3)  # type: ignore[arg-type]
    recall = found["searched"]["image"]["recall_of_approximate"]
    assert min(num_queries, at_most // 2) <= recall["of_queries"] <= at_most


def test_a_query_image_that_is_none(
    exported: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.png").write_bytes(b"text")
    assert cli.main(["search", exported, "--images", str(photos), "--query-image", str(tmp_path / "q.png")]) == 2
    assert f"{tmp_path / 'q.png'}: not an image of a known format" in capsys.readouterr().err
