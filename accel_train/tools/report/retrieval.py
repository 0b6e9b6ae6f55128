"""What a retrieval model finds: how far down the right image is, and queries that went wrong and right."""

from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from accel_train.data.splits import open_split
from accel_train.errors import UserError
from accel_train.tools.page.axis import percent
from accel_train.tools.page.marks import bars
from accel_train.tools.report.pictures import Pictures, no_pictures, read_pictures
from accel_train.tools.report.record import Record
from accel_train.tools.report.tables import Row, evenly

COLUMNS = ("text_id", "text", "rank", "image_1", "similarity_1")
NUM_WRONG, NUM_RIGHT = 9, 6
RANGES = ((1, 1), (2, 5), (6, 10), (11, 50), (51, 200), (201, None))
"""Of ranks, the last one open."""


class Answers:
    """The right images of each query, and a caption for each image, as far as the dataset is there."""

    def __init__(self) -> None:
        self.right: dict[str, list[str]] = defaultdict(list)
        self.caption: dict[str, str] = {}


def draw(record: Record, split: str, rows: list[Row]) -> Markup:
    """Bars of ranks and the gallery. Rows are those of `retrieval_rows`, one for each text."""
    wrong = evenly(sorted((row for row in rows if not is_right(row)), key=lambda row: -row["rank"]), NUM_WRONG)
    right = evenly(sorted((row for row in rows if is_right(row)), key=lambda row: -row["similarity_1"]), NUM_RIGHT)
    found = ranks(rows)
    answers, pictures = from_dataset(record, split, [*wrong, *right])
    found += pictures.note
    for heading, chosen, words in (
        ("Wrong", wrong, "another image is nearer than the right one: from the worst to the nearly right"),
        ("Right", right, "the right image is the nearest: from the most to the least similar"),
    ):
        if chosen:
            items = Markup("").join(_query(row, answers, pictures) for row in chosen)
            found += Markup('<h3>{}: {}</h3><ul class="gallery queries">{}</ul>').format(heading, words, items)
    return found


def ranks(rows: Sequence[Row]) -> Markup:
    """How many queries have their right image at which rank."""
    heights = []
    for first, last in RANGES:
        count = sum(row["rank"] >= first and (last is None or row["rank"] <= last) for row in rows)
        name = f"{first}" if first == last else f"{first}–{last}" if last else f"over {first - 1}"
        heights.append((name, count / len(rows), percent(count / len(rows))))
    return bars(f"Rank of the right image, of {len(rows):,} texts", heights, x_label="rank, 1 is the nearest")


def from_dataset(record: Record, split: str, rows: Sequence[Row]) -> tuple[Answers, Pictures]:
    """What the run's dataset knows of these rows: their right images, and all images to show."""
    answers = Answers()
    config = record.settings.config
    if config is None:
        return answers, no_pictures("of the run", "its configuration is of another version")
    path = config.data.path
    try:
        opened = open_split(path, split)
        texts = {str(opened.texts.value("text_id", row)): row for row in range(opened.num_texts)}
        if any(row["text_id"] not in texts for row in rows):
            return answers, no_pictures(path, f"its split {split} does not hold the texts of this table")
        by_text: dict[int, list[int]] = defaultdict(list)
        for image_row, text_row in opened.matches().tolist():
            by_text[text_row].append(image_row)
            name = str(opened.images.value("image_id", image_row))
            answers.caption.setdefault(name, str(opened.texts.value("text", text_row)))
        for row in rows:
            images = by_text[texts[row["text_id"]]]
            answers.right[row["text_id"]] = [str(opened.images.value("image_id", image)) for image in images]
        shown = {name for row in rows for name in [*_found(row), *answers.right[row["text_id"]][:1]]}
        return answers, read_pictures(opened.images, shown)
    except (UserError, OSError) as error:
        return answers, no_pictures(path, error)


def _found(row: Row) -> list[str]:
    return [row[key] for place in range(1, 6) if row.get(key := f"image_{place}")]


def _query(row: Row, answers: Answers, pictures: Pictures) -> Markup:
    return Markup("<li><p><strong>{}</strong> {}</p>{}</li>").format(
        row["text"], rank(row), nearest(row, answers, pictures)
    )


def rank(row: Row) -> Markup:
    """Of the right image, coloured."""
    return Markup('<span class="{}">rank {:.0f}</span>').format("right" if is_right(row) else "wrong", row["rank"])


def is_right(row: Row) -> bool:
    """Whether a right image is the nearest."""
    return bool(row["rank"] == 1)


def nearest(row: Row, answers: Answers, pictures: Pictures) -> Markup:
    """The nearest images, and the right one where it is not among them."""
    right = answers.right.get(row["text_id"], [])
    entries = Markup("")
    for place, name in enumerate(_found(row), 1):
        is_match = name in right or (place == 1 and is_right(row))
        similarity = f"{float(row.get(f'similarity_{place}') or 'nan'):.2f}"
        entries += _answer(pictures, name, f"{place}. {similarity}", answers, is_match=is_match)
    missed = Markup("")
    if not is_right(row) and right and right[0] not in _found(row):
        missed = _answer(pictures, right[0], f"rank {row['rank']:.0f}", answers, is_match=True)
    return Markup('<ul class="answers">{}{}</ul>').format(entries, missed)


def _answer(pictures: Pictures, name: str, below: str, answers: Answers, *, is_match: bool) -> Markup:
    word = "right" if is_match else "wrong"
    alt = f"{answers.caption.get(name, f'image {name}')} ({word})"
    return Markup('<li class="is-{}">{}<small>{}{}</small></li>').format(
        word, pictures.image(name, alt), "✓ " if is_match else "", below
    )
