"""A contact sheet of what a search found."""

from collections.abc import Sequence

from PIL import Image

from accel_train.errors import UserError
from accel_train.tools.contact_sheet import Found, contact_sheet
from accel_train.tools.search.search import Hit, Query, Search


def sheet_of(search: Search, queries: Sequence[Query], found: Sequence[Sequence[Hit]]) -> Image.Image:
    """A row for each query, a text or an image, with the images found for it. Raises UserError for one that is gone."""
    searched, rows = search.searched["image"], []
    for query, hits in zip(queries, found, strict=True):
        items = []
        for hit in hits:
            content = searched.content(hit.row)
            if not isinstance(content, bytes):
                raise UserError(f"contact sheet: the image {hit.id!r} is not there any more. Search again.")
            items.append(Found(content, hit.score, hit.is_duplicate))
        rows.append((_shown(search, query), items))
    by_image = any(isinstance(shown, bytes) for shown, _ in rows)
    return contact_sheet(
        rows,
        title="Image search" if by_image else "Text to image",
        subtitle=f"{search.encoder.source}; {searched.collection.name}",
        match_label="the same file" if by_image else None,
    )


def _shown(search: Search, query: Query) -> str | bytes:
    """What stands for the query at the left of its row."""
    if query.item is None:
        return query.text if query.text is not None else query.image or ""
    kind, row = query.item
    content = search.searched[kind].content(row)
    return search.searched[kind].id(row) if content is None else content
