import os
import re
from pathlib import Path

import pytest

from accel_train.errors import UserError
from accel_train.writable import check_writable


def test_places_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("")
    for target in (tmp_path / "new.png", tmp_path / "there", Path("relative.png")):
        check_writable(target, "--picture")
    check_writable(tmp_path / "a" / "b" / "c", "OUTPUT", makes_folders=True)


@pytest.mark.parametrize(
    ("target", "makes_folders", "problem"),
    [
        ("a/b.png", False, "a is not there"),
        ("file/b.png", False, "file is not a folder"),
        ("file/a/b.png", True, "file is not a folder"),
        ("folder", False, "it is a folder"),
    ],
)
def test_places_that_can_not(target: str, makes_folders: bool, problem: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"^--picture: found .*{target}, but .*{problem}. Name another place"):
        check_writable(tmp_path / target, "--picture", makes_folders=makes_folders)


def test_a_folder_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} can't be written")):
        check_writable(tmp_path / "a" / "b", "OUTPUT", makes_folders=True)
