import json
import subprocess
import sys
from pathlib import Path

import pytest

from accel_train.cli import main
from accel_train.data.labelled_split import open_labelled_split, read_labels
from accel_train.data.splits import open_split
from accel_train.data.text import open_tokenizer
from accel_train.data.tokenizer_files import find_tokenizer
from accel_train.errors import UserError
from accel_train.tools.imports.texts import import_texts
from tests.labelled import NUM_BY_SPLIT, TOPICS, labelled_lines, write_source


def rows_of(folder: Path, split: str) -> list[tuple[str, str, str]]:
    opened = open_labelled_split(str(folder), split)
    return [
        (
            opened.samples.value("text_id", row),
            opened.labels[opened.samples.value("label", row)],
            opened.samples.value("text", row),
        )
        for row in range(len(opened.samples))
    ]


def test_a_folder_of_lines(tmp_path: Path) -> None:
    source, output = write_source(tmp_path / "source"), tmp_path / "data"
    summary = import_texts(str(source), str(output), build_tokenizer=200, show_progress=False)
    assert summary.labels == list(TOPICS) == list(read_labels(str(output)))
    assert {split: counts["num_samples"] for split, counts in summary.splits.items()} == NUM_BY_SPLIT
    wanted = [line.split(" ||| ") for line in labelled_lines(NUM_BY_SPLIT["train"], 0)]
    assert rows_of(output, "train") == [
        (str(number), list(TOPICS)[int(label)], text) for number, (label, text) in enumerate(wanted)
    ]
    tokenizer = open_tokenizer(find_tokenizer("dataset:tokenizer", str(output)), 16)
    assert tokenizer.vocab_size == summary.vocab_size <= 200


def test_without_a_mapping_the_training_split_decides_the_classes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.csv").write_text("label,text\n10,a\n9,b\n10,c\n")
    (source / "test.csv").write_text("label,text\n9,d\n3,e\n")
    with pytest.raises(UserError, match=r"test\.csv:3: unknown label '3'; known are 9, 10"):
        import_texts(str(source), str(tmp_path / "data"), show_progress=False)
    assert not (tmp_path / "data").exists()
    summary = import_texts(str(source), str(tmp_path / "data"), max_bad_records=1, show_progress=False)
    assert summary.labels == ["9", "10"]
    assert summary.num_bad == 1
    assert rows_of(tmp_path / "data", "test") == [("0", "9", "d")]


def test_labels_may_be_names_of_the_mapping(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("music ||| a\n1 ||| b\n")
    (tmp_path / "label-mapping.json").write_text('{"0": "music", "1": "food"}')
    import_texts(str(tmp_path / "train.txt"), str(tmp_path / "data"), show_progress=False)
    assert [label for _, label, _ in rows_of(tmp_path / "data", "train")] == ["music", "food"]


def test_a_share_for_validation_keeps_copies_together(tmp_path: Path) -> None:
    lines = [f"{number % 2} ||| text {number % 200}" for number in range(400)]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    import_texts(str(tmp_path / "all.txt"), str(tmp_path / "data"), valid_share=0.25, show_progress=False)
    train, valid = ({text for _, _, text in rows_of(tmp_path / "data", split)} for split in ("train", "valid"))
    assert len(train) + len(valid) == 200
    assert train.isdisjoint(valid)
    assert 25 < len(valid) < 75


def test_ids_come_once(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text_id,label,text\nx,a,one\ny,b,two\nx,a,three\n")
    with pytest.raises(UserError, match=r"train\.csv:4: text id 'x' came before"):
        import_texts(str(tmp_path / "train.csv"), str(tmp_path / "data"), show_progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 ||| a\n0 ||| b\n", "has only the label 0; classes are two or more"),
        ("nothing\n", "holds nothing in any format this program reads"),
    ],
)
def test_sources_without_classes(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        import_texts(str(tmp_path / "train.txt"), str(tmp_path / "data"), show_progress=False)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    prints = []
    for number, text in enumerate(
        ["0 ||| a\n1 ||| b\n", "0 ||| a\n1 ||| b\n", "0 ||| a\n1 ||| c\n", "1 ||| a\n0 ||| b\n"]
    ):
        path = tmp_path / f"{number}" / "train.txt"
        path.parent.mkdir()
        path.write_text(text)
        summary = import_texts(str(path), str(tmp_path / f"data{number}"), show_progress=False)
        prints.append(summary.splits["train"]["fingerprint"])
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_dataset_of_another_task(tmp_path: Path) -> None:
    source, output = write_source(tmp_path / "source"), str(tmp_path / "data")
    import_texts(str(source), output, show_progress=False)
    with pytest.raises(UserError, match="was imported for the task sequence_classification, not for contrastive"):
        open_split(output, "train")
    with pytest.raises(UserError, match="was imported for the task contrastive, not for sequence_classification"):
        open_labelled_split("sample:emoji-zh", "train")
    with pytest.raises(UserError, match="no split 'test'; it has train, valid"):
        open_labelled_split(output, "test")


def test_a_file_that_does_not_belong(tmp_path: Path) -> None:
    source, output = write_source(tmp_path / "source"), tmp_path / "data"
    import_texts(str(source), str(output), show_progress=False)
    (output / "valid" / "samples.arrow").rename(output / "train" / "samples.arrow")
    with pytest.raises(UserError, match=r"has 30 rows, but dataset\.json says 90"):
        open_labelled_split(str(output), "train")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path / "source")
    main(["import", str(source), str(tmp_path / "a"), "--task", "sequence_classification", "--build-tokenizer", "100"])
    assert "3 labels: music, food, travel" in capsys.readouterr().out
    main(["import", str(source), str(tmp_path / "b"), "--task=sequence_classification", "--split", "train", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["splits"]) == ["train"]
    assert found["labels"] == list(TOPICS)


def test_its_help_needs_no_torch() -> None:
    code = (
        "import sys; from accel_train.cli import main\n"
        "try: main(['import', '--task', 'sequence_classification', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
