"""Where two runs find other images for the same texts: right in one of them, wrong in the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from accel_train.tools.page.axis import percent
from accel_train.tools.page.page import table
from accel_train.tools.report import retrieval
from accel_train.tools.report.facts import facts_of
from accel_train.tools.report.pictures import Pictures
from accel_train.tools.report.predictions import read_table, tables
from accel_train.tools.report.record import Record
from accel_train.tools.report.tables import Row, evenly, numbered

NUM_QUERIES = 6
"""Shown of each way in which two runs differ."""
MOST_GALLERIES = 3


@dataclass(frozen=True, slots=True)
class Pair:
    """The texts that two runs have both looked for, each as the row of the one and of the other."""

    split: str
    runs: tuple[Record, Record]
    rows: Sequence[tuple[Row, Row]]
    num_unshared: int
    """Texts of one table that the other does not have, or has with other words."""

    def where(self, *right: bool) -> list[tuple[Row, Row]]:
        """Texts that are right in the first run or not, and in the second or not."""
        return [pair for pair in self.rows if tuple(map(retrieval.is_right, pair)) == right]


def pairs_of(records: Sequence[Record], score: str | None) -> list[Pair]:
    """The run with the highest score beside each of the others, for each split that they have tables of."""
    found: dict[str, list[tuple[Record, dict[str, Row]]]] = {}
    for record in sorted(records, key=lambda own: -facts_of(own).best_scores.get(score or "", -np.inf)):
        for path in tables(record):
            rows, columns = read_table(path)
            if set(retrieval.COLUMNS) <= set(columns):
                by_id = {str(row["text_id"]): row for row in numbered(rows, ("rank", "similarity_1"))}
                found.setdefault(path.stem, []).append((record, by_id))
    return [_pair(split, best, other) for split, (best, *others) in sorted(found.items()) for other in others]


def _pair(split: str, best: tuple[Record, dict[str, Row]], other: tuple[Record, dict[str, Row]]) -> Pair:
    (one, mine), (another, theirs) = best, other
    shared = [
        (row, theirs[name]) for name, row in mine.items() if name in theirs and theirs[name]["text"] == row["text"]
    ]
    return Pair(split, (one, another), shared, len(mine) + len(theirs) - 2 * len(shared))


def draw(records: Sequence[Record], score: str | None) -> Markup:
    """A table of how often they differ, then texts with the images of both. Nothing for tasks without retrieval."""
    parts = Markup("")
    pairs = pairs_of(records, score)
    for place, pair in enumerate(pairs):
        parts += _counts(pair)
        if place < MOST_GALLERIES:
            parts += _gallery(pair)
    if len(pairs) > MOST_GALLERIES:
        note = f"The first {MOST_GALLERIES} pairs are shown with their texts; a report of two runs shows those of any pair."
        parts += Markup('<p class="note">{}</p>').format(note)
    return parts


def _counts(pair: Pair) -> Markup:
    one, another = (record.name for record in pair.runs)
    if not pair.rows:
        return Markup('<p class="note">{} and {} have no text of split {} in common.</p>').format(
            one, another, pair.split
        )
    kinds = (
        ("right in both", pair.where(True, True)),
        (f"right in {one} alone", pair.where(True, False)),
        (f"right in {another} alone", pair.where(False, True)),
        ("wrong in both", pair.where(False, False)),
    )
    rows = [[name, f"{len(own):,}", percent(len(own) / len(pair.rows))] for name, own in kinds]
    caption = (
        f"Texts whose nearest image is right, of {len(pair.rows):,} of {pair.split}, at each run's best evaluation"
    )
    note = Markup("")
    if pair.num_unshared:
        note = Markup(
            '<p class="note">{:,} texts are in one table alone, or have other words in the other.</p>'
        ).format(pair.num_unshared)
    return table(["texts", "count", "share"], rows, caption=caption) + note


def _gallery(pair: Pair) -> Markup:
    chosen = [_farthest_apart(pair.where(True, False)), _farthest_apart(pair.where(False, True))]
    shown = [row for own in chosen for both in own for row in both]
    if not shown:
        return Markup("")
    answers, pictures = retrieval.from_dataset(pair.runs[0], pair.split, shown)
    parts = pictures.note
    for (right, wrong), own in zip((pair.runs, pair.runs[::-1]), chosen, strict=True):
        if own:
            items = Markup("").join(_query(pair, both, answers, pictures) for both in own)
            parts += Markup("<h3>Right in {}, wrong in {}: from the farthest apart to the nearest</h3>").format(
                right.name, wrong.name
            ) + Markup('<ul class="gallery queries">{}</ul>').format(items)
    return parts


def _farthest_apart(rows: Sequence[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    return evenly(sorted(rows, key=lambda both: -max(both[0]["rank"], both[1]["rank"])), NUM_QUERIES)


def _query(pair: Pair, both: tuple[Row, Row], answers: retrieval.Answers, pictures: Pictures) -> Markup:
    found = Markup("").join(
        Markup("<p>{} in {}</p>{}").format(retrieval.rank(row), record.name, retrieval.nearest(row, answers, pictures))
        for record, row in zip(pair.runs, both, strict=True)
    )
    return Markup("<li><p><strong>{}</strong></p>{}</li>").format(both[0]["text"], found)


def as_json(records: Sequence[Record], score: str | None) -> list[dict[str, Any]]:
    """Of each pair, the ids of the texts that are right in one run alone, and how many are right in both or in neither."""
    return [
        {
            "split": pair.split,
            "right_in_both": len(pair.where(True, True)),
            "wrong_in_both": len(pair.where(False, False)),
            "right_alone": {
                record.name: [both[0]["text_id"] for both in pair.where(not second, second)]
                for second, record in zip((False, True), pair.runs, strict=True)
            },
        }
        for pair in pairs_of(records, score)
    ]
