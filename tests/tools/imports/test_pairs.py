"""Every format round-trips a part of emoji-zh: the same ids, captions, links and image bytes come out."""

import base64
import csv
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from accel_train.data.splits import open_split
from accel_train.data.text import open_tokenizer
from accel_train.errors import UserError
from accel_train.tools.imports.pairs import FORMATS, import_data


@dataclass
class Content:
    """One split: images by id, and captions by id with the ids of their images."""

    images: dict[str, bytes]
    texts: dict[str, tuple[str, list[str]]]

    def pairs(self) -> list[tuple[str, str]]:
        return [(image_id, text_id) for text_id, (_, image_ids) in self.texts.items() for image_id in image_ids]


Splits = dict[str, Content]


def stored(path: Path | str, split: str, num_images: int | None = None) -> Content:
    """What a dataset folder holds; with `num_images` only the first images and their captions."""
    opened = open_split(str(path), split)
    ids = [opened.images.value("image_id", row) for row in range(num_images or opened.num_images)]
    images = {image_id: opened.images.value("image", row) for row, image_id in enumerate(ids)}
    texts: dict[str, tuple[str, list[str]]] = {}
    for image_row, text_row in opened.matches().tolist():
        if image_row < len(ids):
            text_id, text = opened.texts.value("text_id", text_row), opened.texts.value("text", text_row)
            texts.setdefault(text_id, (text, []))[1].append(ids[image_row])
    return Content(images, texts)


@pytest.fixture(scope="module")
def emoji() -> Splits:
    """A few images and captions of each split; one caption of train is made to describe two images."""
    splits = {"train": stored("sample:emoji-zh", "train", 9), "valid": stored("sample:emoji-zh", "valid", 5)}
    train = splits["train"]
    next(iter(train.texts.values()))[1].append(list(train.images)[3])
    return splits


def rows_of(content: Content) -> list[dict[str, str]]:
    """A row for each pair, images in base64."""
    return [
        {
            "image_id": image_id,
            "image": base64.b64encode(content.images[image_id]).decode(),
            "text_id": text_id,
            "text": content.texts[text_id][0],
        }
        for image_id, text_id in content.pairs()
    ]


def rows_with_paths(folder: Path, split: str, content: Content) -> list[dict[str, str]]:
    """The same with images in files."""
    (folder / "images" / split).mkdir(parents=True)
    for image_id, image in content.images.items():
        (folder / "images" / split / f"{image_id}.webp").write_bytes(image)
    return [row | {"image": f"images/{split}/{row['image_id']}.webp"} for row in rows_of(content)]


def write_tsv(folder: Path, splits: Splits) -> None:
    for split, content in splits.items():
        images = [f"{image_id}\t{base64.b64encode(image).decode()}\n" for image_id, image in content.images.items()]
        (folder / f"{split}_imgs.tsv").write_text("".join(images))
        texts = [
            json.dumps({"text_id": int(text_id), "text": text, "image_ids": [int(name) for name in image_ids]}) + "\n"
            for text_id, (text, image_ids) in content.texts.items()
        ]
        (folder / f"{split}_texts.jsonl").write_text("".join(texts))


def write_lmdb(folder: Path, splits: Splits) -> None:
    lmdb = pytest.importorskip("lmdb")
    for split, content in splits.items():
        (folder / "lmdb" / split).mkdir(parents=True)
        records = {
            "imgs": {name.encode(): base64.b64encode(image) for name, image in content.images.items()}
            | {b"num_images": str(len(content.images)).encode()},
            "pairs": {
                str(index).encode(): pickle.dumps((int(image_id), int(text_id), content.texts[text_id][0]))
                for index, (image_id, text_id) in enumerate(content.pairs())
            }
            | {b"num_samples": str(len(content.pairs())).encode()},
        }
        for name, values in records.items():
            environment = lmdb.open(str(folder / "lmdb" / split / name), map_size=2**24)
            with environment, environment.begin(write=True) as transaction:
                for key, value in values.items():
                    transaction.put(key, value)


def write_csv_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_csv(folder: Path, splits: Splits) -> None:
    for split, content in splits.items():
        write_csv_rows(folder / f"{split}.csv", rows_of(content))


def write_tab_separated_paths(folder: Path, splits: Splits) -> None:
    for split, content in splits.items():
        write_csv_rows(folder / f"{split}.tsv", rows_with_paths(folder, split, content))


def write_jsonl(folder: Path, splits: Splits) -> None:
    for split, content in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(content)))


def write_jsonl_with_paths(folder: Path, splits: Splits) -> None:
    for split, content in splits.items():
        rows = rows_with_paths(folder, split, content)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def table_of(content: Content) -> pa.Table:
    return pa.Table.from_pylist([row | {"image": content.images[row["image_id"]]} for row in rows_of(content)])


def write_parquet(folder: Path, splits: Splits) -> None:
    for split, content in splits.items():
        table = table_of(content)
        half = table.num_rows // 2
        parquet.write_table(table.slice(0, half), folder / f"{split}-00000-of-00002.parquet")
        parquet.write_table(table.slice(half), folder / f"{split}-00001-of-00002.parquet")


def write_arrow_files(folder: Path, splits: Splits) -> None:
    for split, content in splits.items():
        table = table_of(content)
        with pa.ipc.new_file(str(folder / f"{split}.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=3)


def write_arrow_streams(folder: Path, splits: Splits) -> None:
    for split, content in splits.items():
        table = table_of(content)
        with pa.ipc.new_stream(str(folder / f"{split}.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=3)


def write_hf_datasets(folder: Path, splits: Splits) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    text = datasets.Value("string")
    features = datasets.Features(image=datasets.Image(), text=text, image_id=text, text_id=text)
    parts = {}
    for split, content in splits.items():
        rows = [row | {"image": {"bytes": content.images[row["image_id"]], "path": None}} for row in rows_of(content)]
        parts[split] = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(folder))


WRITERS: dict[str, tuple[str, Callable[[Path, Splits], None]]] = {
    "tsv": ("chinese_clip_tsv", write_tsv),
    "lmdb": ("chinese_clip_lmdb", write_lmdb),
    "csv": ("csv", write_csv),
    "tab-separated paths": ("csv", write_tab_separated_paths),
    "jsonl": ("jsonl", write_jsonl),
    "jsonl paths": ("jsonl", write_jsonl_with_paths),
    "parquet": ("parquet", write_parquet),
    "arrow files": ("parquet", write_arrow_files),
    "arrow streams": ("parquet", write_arrow_streams),
    "hf datasets": ("hf_datasets", write_hf_datasets),
}


@pytest.mark.parametrize("kind", list(WRITERS))
def test_round_trip(tmp_path: Path, emoji: Splits, kind: str) -> None:
    name, write = WRITERS[kind]
    source = tmp_path / "source"
    source.mkdir()
    write(source, emoji)
    summary = import_data(str(source), str(tmp_path / "dataset"))
    assert summary.format == name
    assert (summary.num_bad, summary.bad_records, summary.num_captions_dropped) == (0, [], 0)
    assert set(summary.splits) == set(emoji)
    for split, content in emoji.items():
        found = stored(tmp_path / "dataset", split)
        assert found.images == content.images
        assert {key: (text, sorted(ids)) for key, (text, ids) in found.texts.items()} == {
            key: (text, sorted(ids)) for key, (text, ids) in content.texts.items()
        }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_every_format_is_covered() -> None:
    assert {name for name, _ in WRITERS.values()} | {"image_folder", "webdataset"} == set(FORMATS)


def test_image_folders_with_sidecars(tmp_path: Path, emoji: Splits) -> None:
    for split, content in emoji.items():
        (tmp_path / "source" / split).mkdir(parents=True)
        for image_id, image in content.images.items():
            (tmp_path / "source" / split / f"{image_id}.webp").write_bytes(image)
        captions: dict[str, list[str]] = {}
        for image_id, text_id in content.pairs():
            captions.setdefault(image_id, []).append(content.texts[text_id][0])
        for image_id, lines in captions.items():
            (tmp_path / "source" / split / f"{image_id}.txt").write_text("\n".join(lines) + "\n\n")
    import_data(str(tmp_path / "source"), str(tmp_path / "dataset"))
    for split, content in emoji.items():
        found = stored(tmp_path / "dataset", split)
        assert found.images == {f"{image_id}.webp": image for image_id, image in content.images.items()}
        wanted = sorted((f"{image_id}.webp", content.texts[text_id][0]) for image_id, text_id in content.pairs())
        assert sorted((found.texts[text_id][1][0], found.texts[text_id][0]) for text_id in found.texts) == wanted


def test_image_folders_by_file_name_and_by_class(tmp_path: Path, emoji: Splits) -> None:
    images = list(emoji["valid"].images.values())
    for place in ("flat/红花.webp", "flat/cat.webp", "classes/花/1.webp", "classes/花/2.webp", "classes/猫/1.webp"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(images.pop())
    import_data(str(tmp_path / "flat"), str(tmp_path / "a"))
    import_data(str(tmp_path / "classes"), str(tmp_path / "b"))
    assert {ids[0]: text for text, ids in stored(tmp_path / "a", "train").texts.values()} == {
        "红花.webp": "红花",
        "cat.webp": "cat",
    }
    assert {ids[0]: text for text, ids in stored(tmp_path / "b", "train").texts.values()} == {
        "花/1.webp": "花",
        "花/2.webp": "花",
        "猫/1.webp": "猫",
    }


def test_columns_can_be_named_and_ids_left_out(tmp_path: Path, emoji: Splits) -> None:
    rows = rows_of(emoji["valid"])
    renamed = [{"picture": row["image"], "words": row["text"], "other": "x"} for row in rows]
    write_csv_rows(tmp_path / "pairs.csv", renamed)
    import_data(str(tmp_path / "pairs.csv"), str(tmp_path / "d"), image_column="picture", text_column="words")
    found = stored(tmp_path / "d", "train")
    assert list(found.images.values()) == list(emoji["valid"].images.values())
    assert list(found.texts) == [str(index) for index in range(len(rows))]
    assert [text for text, _ in found.texts.values()] == [row["text"] for row in rows]


def test_a_list_of_captions_is_several(tmp_path: Path, emoji: Splits) -> None:
    image = rows_of(emoji["valid"])[0]["image"]
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": image, "captions": ["a", "b"]}) + "\n")
    import_data(str(tmp_path), str(tmp_path / "d"))
    found = stored(tmp_path / "d", "train")
    assert [text for text, _ in found.texts.values()] == ["a", "b"] and len(found.images) == 1


def test_valid_share_divides_by_image_content(tmp_path: Path, emoji: Splits) -> None:
    content = emoji["train"]
    images = content.images | {"copy": next(iter(content.images.values()))}
    texts = content.texts | {"999": ("again", ["copy"])}
    rows = rows_of(Content(images, texts))
    write_csv_rows(tmp_path / "train.csv", rows)
    import_data(str(tmp_path / "train.csv"), str(tmp_path / "d"), valid_share=0.4)
    parts = {split: stored(tmp_path / "d", split) for split in ("train", "valid")}
    assert sorted([*parts["train"].images, *parts["valid"].images]) == sorted(images)
    first = next(iter(content.images))
    assert ("copy" in parts["train"].images) == (first in parts["train"].images)
    assert sum(len(part.pairs()) for part in parts.values()) == len(rows)
    assert all(image_id in part.images for part in parts.values() for image_id, _ in part.pairs())
    write_csv(tmp_path, emoji)
    with pytest.raises(UserError, match="--valid-share is for a source with one split"):
        import_data(str(tmp_path), str(tmp_path / "e"), valid_share=0.4)


def test_valid_share_is_about_the_share_asked_for(tmp_path: Path) -> None:
    import io

    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(300):
        stream = io.BytesIO()
        Image.new("RGB", (2, 2), (index % 256, index // 256, 7)).save(stream, "PNG")
        (tmp_path / "images" / f"{index}.png").write_bytes(stream.getvalue())
    summary = import_data(str(tmp_path / "images"), str(tmp_path / "d"), valid_share=0.2)
    assert 40 <= summary.splits["valid"]["num_images"] <= 80


def test_some_splits_only(tmp_path: Path, emoji: Splits) -> None:
    write_csv(tmp_path, emoji)
    assert set(import_data(str(tmp_path), str(tmp_path / "d"), splits=["valid"]).splits) == {"valid"}


def test_a_tokenizer_is_built_from_the_training_captions(tmp_path: Path, emoji: Splits) -> None:
    write_csv(tmp_path, emoji)
    summary = import_data(str(tmp_path), str(tmp_path / "d"), build_tokenizer=500)
    tokenizer = open_tokenizer(str(tmp_path / "d" / "tokenizer"), 60)
    assert tokenizer.vocab_size == summary.vocab_size <= 500
    unknown = 1
    for text, _ in emoji["train"].texts.values():
        assert unknown not in tokenizer.encode(text)[0]


def test_bad_records_within_the_budget_are_left_out_and_reported(tmp_path: Path, emoji: Splits) -> None:
    content = emoji["valid"]
    broken = next(iter(content.images))
    write_tsv(tmp_path, {"train": Content(content.images | {broken: b"no image"}, content.texts)})
    with pytest.raises(UserError, match=r"1 bad records.*\n.*train_imgs\.tsv:1: image '15'"):
        import_data(str(tmp_path), str(tmp_path / "d"))
    summary = import_data(str(tmp_path), str(tmp_path / "d"), max_bad_records=1)
    assert summary.num_bad == 1 and "train_imgs.tsv:1" in summary.bad_records[0]
    assert summary.num_captions_dropped == sum(ids == [broken] for _, ids in content.texts.values()) > 0
    found = stored(tmp_path / "d", "train")
    assert set(found.images) == set(content.images) - {broken}
    assert all(broken not in ids for _, ids in found.texts.values())


def test_importing_twice_gives_the_same_bytes(tmp_path: Path, emoji: Splits) -> None:
    write_tsv(tmp_path, emoji)
    for name in ("a", "b"):
        import_data(str(tmp_path), str(tmp_path / name), build_tokenizer=300)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 10
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_a_split_needs_a_name_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a b\x1b[2J_imgs.tsv").touch()
    (tmp_path / "source" / "a b\x1b[2J_texts.jsonl").touch()
    with pytest.raises(UserError, match=r"'a b\\x1b\[2J' can't be the name of a split"):
        import_data(str(tmp_path / "source"), str(tmp_path / "out"))
