"""The numbers and claims of docs/security.md are those of the code."""

import ast
import re
from pathlib import Path

import PIL.Image
import pytest

from accel_train.data.readers import records, tar_members, webdataset
from accel_train.data.transforms import FORMATS, MAX_PIXELS
from accel_train.data.wav import HIGHEST_RATE, LOWEST_RATE

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
LIMITS = dict(re.findall(r"^\| ([^|]+?) \| ([\d,]+(?: to [\d,]+)?) \w+ \|$", PAGE, re.MULTILINE))
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "accel_train").rglob("*.py")}


def test_limits() -> None:
    assert {
        "an image": f"{MAX_PIXELS:,}",
        "an image or recording in a file of its own, or in an archive": f"{records.MAX_FILE_BYTES:,}",
        "a line of a JSONL or TSV file": f"{records.MAX_LINE_BYTES:,}",
        "the text of an archive's sample": f"{webdataset.MAX_TEXT_BYTES:,}",
        "a header in an archive": f"{tar_members.MAX_HEADER_BYTES:,}",
        "an id": f"{records.MAX_ID_LENGTH:,}",
        "sample rate of a recording": f"{LOWEST_RATE:,} to {HIGHEST_RATE:,}",
    } == LIMITS
    assert webdataset.MAX_IMAGE_BYTES == records.MAX_FILE_BYTES


def test_an_uncompressed_image_of_the_most_pixels_fits() -> None:
    assert 4 * MAX_PIXELS < records.MAX_FILE_BYTES
    assert 4 * records.MAX_FILE_BYTES / 3 < records.MAX_LINE_BYTES
    assert (
        PIL.Image.MAX_IMAGE_PIXELS is not None
    )  # Pillow's own limit is still on: it guards what is decoded on the way


def test_formats() -> None:
    assert len(FORMATS) == 7 and "seven formats" in PAGE
    assert not set(FORMATS) & {"EPS", "PDF", "WMF", "FPX"}


def calls(name: str) -> list[tuple[Path, ast.Call]]:
    """Every call of a function or method of this name in the package."""
    return [
        (path, node)
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name
    ]


def options(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_nothing_is_unpickled_but_in_two_places() -> None:
    loads = [
        (path.name, ast.unparse(call.func)) for name in ("load", "loads", "Unpickler") for path, call in calls(name)
    ]
    unpickling = [
        (file, called) for file, called in loads if called.startswith(("pickle.", "torch.", "np.", "joblib."))
    ]
    assert sorted(unpickling) == [("chinese_clip_lmdb.py", "pickle.loads"), ("torch_files.py", "torch.load")]
    (found,) = [call for _, call in calls("load") if ast.unparse(call.func) == "torch.load"]
    assert options(found)["weights_only"] == "True"


def test_model_folders_bring_no_code_and_nothing_is_downloaded() -> None:
    found = calls("from_pretrained")
    assert len(found) >= 3
    for path, call in found:
        assert options(call)["local_files_only"] == "True", path
        assert options(call)["trust_remote_code"] == "False", path


@pytest.mark.parametrize("name", ["eval", "exec", "system", "popen", "extractall", "unpack_archive"])
def test_nothing_is_run_or_extracted(name: str) -> None:
    found = [(path.name, ast.unparse(call)) for path, call in calls(name) if not ast.unparse(call).endswith(".eval()")]
    assert found == []


def test_images_are_opened_in_one_place() -> None:
    assert [path.name for path, call in calls("open") if ast.unparse(call.func) == "Image.open"] == ["transforms.py"]


def test_every_program_that_is_started_is_a_list_of_words() -> None:
    for name in ("run", "Popen", "check_output", "call", "check_call"):
        for path, call in calls(name):
            if ast.unparse(call.func).startswith("subprocess."):
                assert "shell" not in options(call), path
