import json

import pytest

from accel_train.tools.imports.pairs import ImportSummary
from accel_train.tools.imports.summary import print_import

COUNTS = {"num_images": 1200, "num_texts": 2400, "num_pairs": 2500, "fingerprint": "f"}
CLEAN = ImportSummary("data/x", "csv", {"train": COUNTS}, 0, [], 0, None)
DIRTY = ImportSummary("data/x", "csv", {"train": COUNTS}, 3, ["a.csv, line 7: no caption"], 1, 500)


def test_a_clean_import(capsys: pytest.CaptureFixture[str]) -> None:
    print_import(CLEAN, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "data/x: written from csv",
        "  train: 1,200 images, 2,400 captions, 2,500 pairs",
    ]


def test_what_was_left_out_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_import(DIRTY, as_json=False)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "  tokenizer: 500 tokens; use it with data.tokenizer: dataset:tokenizer",
        "  left out: 3 bad records, 1 captions without an image",
        "    a.csv, line 7: no caption",
        "    ... and 2 more",
    ]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_import(DIRTY, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["num_bad"], found["splits"]["train"]["num_pairs"]) == (3, 2500)
