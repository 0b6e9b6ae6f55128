"""Files that rows name: never outside the folder of their table, never without an end."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.data.readers import image_folder, records
from accel_train.data.readers.records import BadRecord, BadValue, Columns, ImageRecord, read_inside, text_lines
from accel_train.errors import UserError
from tests.fuzzing import FUZZ


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with a file, beside a secret."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.png").write_bytes(b"a")
    return tmp_path / "data"


def test_links_inside_are_followed(folder: Path) -> None:
    (folder / "b.png").symlink_to("sub/a.png")
    (folder / "s").symlink_to(folder / "sub")
    assert [read_inside(folder, name) for name in ("sub/a.png", "b.png", "s/a.png", "s/../b.png")] == [b"a"] * 4
    seen_from_elsewhere = folder.parent / "link_to_data"
    seen_from_elsewhere.symlink_to(folder)
    assert read_inside(seen_from_elsewhere, "b.png") == b"a"


@pytest.mark.parametrize("target", ["../secret.png", "{}/secret.png"])
def test_links_that_lead_out_are_refused(target: str, folder: Path) -> None:
    (folder / "b.png").symlink_to(target.format(folder.parent))
    (folder / "up").symlink_to("..")
    for name in ("b.png", "up/secret.png"):
        with pytest.raises(BadValue, match=r"is a link that leads out of .*`cp -rL`"):
            read_inside(folder, name)


def test_an_image_folder_is_not_left_by_a_link(folder: Path) -> None:
    (folder / "b.png").symlink_to("../secret.png")
    (folder / "up").symlink_to("..")
    found = list(image_folder.read([folder], Columns()))
    assert [record.where for record in found if isinstance(record, BadRecord)] == [str(folder / "b.png")]
    assert [record.image for record in found if isinstance(record, ImageRecord)] == [b"a"]


def test_captions_are_not_fetched_by_a_link(folder: Path) -> None:
    (folder.parent / "key.txt").write_text("a private key")
    (folder / "sub" / "a.txt").symlink_to("../../key.txt")
    found = list(image_folder.read([folder], Columns()))
    assert isinstance(found[-1], BadRecord)
    assert "a private key" not in str(found)


def test_what_is_no_plain_file_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    for name, reason in (("pipe.png", "is not a plain file"), ("sub", "is not a plain file"), ("x" * 5000, "too long")):
        with pytest.raises(BadValue, match=reason):
            read_inside(folder, name)


def test_a_file_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_FILE_BYTES", 1)
    assert read_inside(folder, "sub/a.png") == b"a"
    (folder / "sub" / "a.png").write_bytes(b"ab")
    with pytest.raises(BadValue, match="more than 1 bytes"):
        read_inside(folder, "sub/a.png")


def test_a_line_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 10)
    (tmp_path / "a.jsonl").write_bytes(b"12345678\n" + b"x" * 50)
    lines = text_lines(tmp_path / "a.jsonl")
    assert next(lines) == (f"{tmp_path / 'a.jsonl'}:1", "12345678")
    with pytest.raises(UserError, match=r"a\.jsonl:2: a line of 10 bytes or more"):
        next(lines)


parts = st.sampled_from(
    ["..", ".", "", "sub", "a.png", "up", "secret.png", "/", "//", "\\", "~", "%2e%2e", "\0", "é", "x" * 300]
)


@FUZZ
@given(st.lists(parts, max_size=7).map("/".join) | st.text(max_size=20))
def test_no_path_leads_out(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    if not root.exists():
        (tmp_path / "secret.png").write_bytes(b"secret")
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "a.png").write_bytes(b"a")
        (root / "up").symlink_to("..")
    with suppress(BadValue):
        assert read_inside(root, name) == b"a"
