"""`accel-train import --task multimodal_llm`: what is written, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from accel_train.cli import main
from accel_train.data.splits import open_split
from accel_train.data.spoken_split import open_spoken_split
from accel_train.errors import UserError
from accel_train.tools.imports.speech import SpeechSummary, import_speech
from tests.spoken import write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source", train=9, valid=4)


def run(source: Path, output: Path, **options: Any) -> SpeechSummary:
    return import_speech(str(source), str(output), images=str(source), show_progress=False, **options)


def lines(source: Path, split: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (source / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def rewrite(source: Path, rows: list[Any]) -> None:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (source / "train.jsonl").write_text(text, encoding="utf-8")


def test_every_row_is_there(source: Path, tmp_path: Path) -> None:
    summary = run(source, tmp_path / "out", build_tokenizer=40)
    assert summary.sample_rates == [8000]
    assert summary.vocab_size is not None and summary.vocab_size <= 40
    for split, count in (("train", 9), ("valid", 4)):
        opened = open_spoken_split(str(tmp_path / "out"), split)
        assert opened.num_samples == len(opened.images) == len(opened.recordings) == count
        for row, wanted in enumerate(lines(source, split)):
            assert opened.images.value("image_id", opened.samples.value("image_row", row)) == str(wanted["image_id"])
            audio_row = opened.samples.value("audio_row", row)
            assert opened.recordings.value("audio_id", audio_row) == wanted["audio"]
            assert opened.recordings.value("audio", audio_row) == (source / wanted["audio"]).read_bytes()
            assert opened.texts.value("text", opened.samples.value("text_row", row)) == wanted["text"]
    # "red left" comes twice in nine rows: it is stored once, and matches two images and two recordings.
    assert summary.splits["train"]["num_texts"] == len({row["text"] for row in lines(source)})
    opened = open_spoken_split(str(tmp_path / "out"), "train")
    assert len(opened.matches("text", "image")) == 9
    assert opened.matches("text", "image").tolist() == opened.matches("image", "text").flip(1).sort(0).values.tolist()


def test_two_captions_make_two_samples(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", text_columns=("text", "text_zh"))
    opened = open_spoken_split(str(tmp_path / "out"), "valid")
    assert (opened.num_samples, len(opened.recordings)) == (8, 4)
    assert [opened.samples.value("audio_row", row) for row in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(opened.matches("image", "audio")) == 4


def test_images_from_a_folder(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "first")
    first = open_spoken_split(str(tmp_path / "first"), "train")
    (tmp_path / "images").mkdir()
    for split in ("train", "valid"):
        opened = open_spoken_split(str(tmp_path / "first"), split)
        for row in range(len(opened.images)):
            name = opened.images.value("image_id", row)
            (tmp_path / "images" / f"{name}.png").write_bytes(opened.images.value("image", row))
    import_speech(str(source), str(tmp_path / "second"), images=str(tmp_path / "images"), show_progress=False)
    assert open_spoken_split(str(tmp_path / "second"), "train").fingerprint == first.fingerprint


def test_bad_records_are_named(source: Path, tmp_path: Path) -> None:
    rows: list[Any] = lines(source)
    rows[1]["image_id"] = 77
    rows[2]["audio"] = "wav/none.wav"
    rows[3]["audio"] = "../secret.wav"
    rows[4]["text"] = " "
    del rows[5]["audio"]
    rows[6] = "{\n"
    (source / rows[7]["audio"]).write_bytes(b"RIFF")
    rewrite(source, rows)
    with pytest.raises(UserError, match="7 bad records, and --max-bad-records is 0"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    summary = run(source, tmp_path / "out", max_bad_records=7)
    assert summary.splits["train"]["num_samples"] == 2
    for where, reason in (
        ("train.jsonl:2", "image '77': it is not among the images"),
        ("train.jsonl:3", "the audio file wav/none.wav can't be read"),
        ("train.jsonl:4", "the audio path '../secret.wav' leads out"),
        ("train.jsonl:5", "text is empty"),
        ("train.jsonl:6", "lacks audio"),
        ("train.jsonl:7", "not JSON"),
        ("train.jsonl:8", "recording 'wav/7.wav': not a PCM WAV file"),
    ):
        assert any(where in line and reason in line for line in summary.bad_records), reason


def test_a_damaged_image_is_a_bad_record(source: Path, tmp_path: Path) -> None:
    path = source / "train_imgs.tsv"
    rows = path.read_text().splitlines()
    rows[0], rows[1] = "0\tbm90IGFuIGltYWdl", "1\t!!"
    path.write_text("\n".join(rows) + "\n")
    summary = run(source, tmp_path / "out", max_bad_records=2)
    assert summary.num_bad == 2
    assert summary.splits["train"]["num_images"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_columns": ("text", "text")}, "name each column once"),
        ({"text_columns": ("caption",)}, "lacks caption"),
        ({"splits": ["test"]}, "no split 'test'; it has train, valid"),
        ({"build_tokenizer": 3}, "--build-tokenizer is 3"),
        ({"format": "csv"}, "--format is 'csv'"),
    ],
)
def test_refusals(source: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "out", **options)


def test_a_folder_without_images(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither"):
        import_speech(str(source), str(tmp_path / "out"), images=str(tmp_path / "empty"), show_progress=False)
    with pytest.raises(UserError, match="does not exist"):
        import_speech(str(source), str(tmp_path / "out"), images=str(tmp_path / "none"), show_progress=False)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["import", str(source), str(tmp_path / "out"), "--task", "multimodal_llm", "--images", str(source)]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["valid"]["num_samples"] == 4
    with pytest.raises(UserError, match="imported for the task multimodal_llm, not for contrastive"):
        open_split(str(tmp_path / "out"), "train")
