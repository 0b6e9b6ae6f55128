"""Searching by text, by image and by what was found: the same for the command, the page and Python.

with open_search("runs/quickstart", Asked(images="photos")) as search:
    ((best, *others),) = search.find([Query(text="红色的花")])
    print(best.id, best.score)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from accel_train.data.transforms import UnreadableImage
from accel_train.errors import UserError
from accel_train.tools.prompts import PLACE, read_templates
from accel_train.tools.search.approximate import Approximate, open_approximate, recall_of, sampled
from accel_train.tools.search.asked import Asked
from accel_train.tools.search.collection import Collection, open_collections
from accel_train.tools.search.encoder import Encoder, open_encoder
from accel_train.tools.search.index import Indexed, default_folder, held, update
from accel_train.tools.search.nearest import nearest
from accel_train.tools.search.stored import Stored, open_stored

SURELY_OTHER = 0.98
"""The same bytes have a cosine of 1 but for rounding, bf16 at worst: below this no file is opened to compare."""


@dataclass(frozen=True, slots=True)
class Query:
    """A text, an encoded image, or an item of what is searched. Exactly one."""

    text: str | None = None
    image: bytes | None = None
    item: tuple[str, int] | None = None
    """Kind and row."""
    name: str = ""
    """What to call an image, such as its path."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An item that a query brought up."""

    kind: str
    row: int
    """Of the searched items of its kind."""
    id: str
    score: float
    """Cosine similarity."""
    text: str | None = None
    """What a text says."""
    is_duplicate: bool = False
    """An image that is, byte for byte, the query's."""


@dataclass(slots=True)
class Searched:
    """Items of one kind with their features, and how to find among them."""

    collection: Collection
    index: Indexed
    approximate: Approximate | None = None

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self.approximate is not None:
            return self.approximate.nearest(queries, k)
        return nearest(queries, self.index.features, k)

    def id(self, row: int) -> str:
        return self.collection.ids[self.index.rows[row]]

    def content(self, row: int) -> bytes | str | None:
        return self.collection.content(self.index.rows[row])

    def __len__(self) -> int:
        return len(self.index.rows)


class Search:
    """A model and what it searches. Not for several threads at once."""

    def __init__(self, encoder: Encoder, searched: dict[str, Searched], folder: Path | None) -> None:
        self.encoder = encoder
        self.searched = searched
        self.folder = folder
        """Where the index lies."""

    @property
    def kinds(self) -> list[str]:
        return list(self.searched)

    def features(self, queries: Sequence[Query]) -> Tensor:
        """(n, D), L2-normalised. Raises UserError for an image that can't be read."""
        found: dict[int, Tensor] = {}
        texts = [(place, query.text) for place, query in enumerate(queries) if query.text is not None]
        if texts:
            encoded = self.encoder.texts([text for _, text in texts])
            found |= {place: row for (place, _), row in zip(texts, encoded, strict=True)}
        for place, query in enumerate(queries):
            if query.image is not None:
                try:
                    found[place] = self.encoder.images([query.image])[0]
                except UnreadableImage as error:
                    raise UserError(f"{query.name or 'the query image'}: {error}.") from error
            elif query.item is not None:
                kind, row = query.item
                found[place] = self.searched[kind].index.features[row]
        return torch.stack([found[place] for place in range(len(queries))])

    def find(self, queries: Sequence[Query], *, kind: str | None = None, top: int = 10) -> list[list[Hit]]:
        """For each query the `top` items of a kind (default: the first there is), best first. Raises UserError.

        An item that is the query itself is left out.
        """
        kind = kind or self.kinds[0]
        searched = self.searched[kind]
        scores, rows = searched.nearest(self.features(queries), top + 1)
        return [
            self._hits(query, kind, list(zip(one_scores, one_rows, strict=True)))[:top]
            for query, one_scores, one_rows in zip(queries, scores.tolist(), rows.tolist(), strict=True)
        ]

    def _hits(self, query: Query, kind: str, found: list[tuple[float, int]]) -> list[Hit]:
        searched, hits = self.searched[kind], []
        image = query.image
        if query.item is not None and query.item[0] == "image" == kind:
            content = searched.content(query.item[1])
            image = content if isinstance(content, bytes) else None
        for score, row in found:
            if row < 0 or query.item == (kind, row):
                continue
            text, is_duplicate = None, False
            if kind == "text":
                content = searched.content(row)
                text = content if isinstance(content, str) else None
            elif image is not None and score >= SURELY_OTHER:
                is_duplicate = searched.content(row) == image
            hits.append(Hit(kind, row, searched.id(row), score, text, is_duplicate))
        return hits

    def recall_of_approximate(self, kind: str, top: int, queries: Tensor | None = None) -> float:
        """Share of the exact results that the approximate search finds too: for the queries, or some of the items."""
        searched = self.searched[kind]
        assert searched.approximate is not None
        chosen = sampled(searched.index.features) if queries is None else queries
        return recall_of(searched.approximate, chosen, searched.index.features, top)


@contextmanager
def open_search(
    source: str,
    asked: Asked,
    *,
    index: str | None = None,
    approximate: bool = False,
    templates: str | None = None,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    show_progress: bool = True,
) -> Iterator[Search]:
    """Opens a trained dual encoder (a run, an export, a configuration with published weights) and what it searches.

    The index is brought up to date first, in `index` or a folder in the user's cache. `templates` is what texts are put
    into, as for zero-shot classification. Raises UserError.
    """
    prompts = (PLACE,) if templates is None else read_templates(templates, [])[1]
    with open_encoder(source, templates=prompts, checkpoint=checkpoint, overrides=overrides) as encoder:
        collections = open_stored(asked, encoder) if asked.features else open_collections(asked, encoder.config.data)
        location = next(iter(collections.values())).location
        folder = Path(index) if index is not None else default_folder(location)
        keeps_files = approximate or not asked.features
        with held(folder, location) if keeps_files else nullcontext():
            searched = {
                kind: Searched(collection, _indexed(folder, collection, encoder, show_progress))
                for kind, collection in collections.items()
            }
            for kind, one in searched.items() if approximate else ():
                one.approximate = open_approximate(
                    folder, kind, one.index.features, one.index.token, show_progress=show_progress
                )
        yield Search(encoder, searched, folder if keeps_files else None)


def _indexed(folder: Path, collection: Collection, encoder: Encoder, show_progress: bool) -> Indexed:
    if isinstance(collection, Stored):
        return Indexed(range(len(collection.ids)), collection.features, collection.token)
    return update(folder, collection, encoder, show_progress=show_progress)
