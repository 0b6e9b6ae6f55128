"""`accel-train search`: what a trained dual encoder finds for texts and images, as lines, JSON, a picture or a page."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_train.data.loose_files import read_lines
from accel_train.data.readers.records import BadValue, read_bounded
from accel_train.errors import UserError
from accel_train.tools.search.approximate import NUM_SAMPLED
from accel_train.tools.search.asked import Asked
from accel_train.tools.search.picture import sheet_of
from accel_train.tools.search.search import Hit, Query, Search, open_search
from accel_train.visible import visible
from accel_train.writable import check_result_file

MAX_NAMED = 20
"""Unreadable images that are named; the others are counted."""
MAX_DRAWN = 100
"""Queries on a contact sheet."""
MAX_COLUMNS = 20
"""Images beside each."""


@dataclass(frozen=True, slots=True)
class Output:
    """What to do with what is found."""

    as_json: bool = False
    contact_sheet: str | None = None
    serve: bool = False
    port: int = 0


def search_command(
    source: str,
    asked: Asked,
    *,
    texts: list[str],
    text_file: str | None,
    images: list[str],
    top: int,
    output: Output,
    index: str | None,
    approximate: bool,
    templates: str | None,
    checkpoint: str | None,
    overrides: list[str],
) -> None:
    """Searches and prints, or serves a page until Ctrl-C. Raises UserError."""
    queries = read_queries(texts, text_file, images)
    if output.contact_sheet is not None:
        _check_sheet(output.contact_sheet, asked, len(queries), top)
    with open_search(
        source,
        asked,
        index=index,
        approximate=approximate,
        templates=templates,
        checkpoint=checkpoint,
        overrides=overrides,
    ) as search:
        _say_what_is_left_out(search)
        if output.serve:
            from accel_train.tools.search.server import serve

            for line in _about_in_words(about(search, None, [], top)):
                print(line)
            serve(search, port=output.port, top=top)
            return
        kind = search.kinds[0]
        found = search.find(queries, kind=kind, top=top) if queries else []
        described = about(search, kind, queries, top)
        if output.contact_sheet is not None:
            sheet_of(search, queries, found).save(output.contact_sheet)
            described["contact_sheet"] = output.contact_sheet
        if output.as_json:
            described["queries"] = [
                _query_as_json(q) | {"found": _as_json(h)} for q, h in zip(queries, found, strict=True)
            ]
            print(json_text(described))
        else:
            _print_in_words(queries, found, described)


def read_queries(texts: list[str], text_file: str | None, images: list[str]) -> list[Query]:
    """Queries in the order texts, lines of the file, images. Raises UserError that names what can't be read."""
    if any(not text.strip() for text in texts):
        raise UserError("--query is empty; it is a text to search by.")
    lines = read_lines(text_file) if text_file is not None else []
    queries = [Query(text=text) for text in [*texts, *lines]]
    for path in images:
        try:
            queries.append(Query(image=read_bounded(Path(path), "it"), name=path))
        except BadValue as error:
            raise UserError(f"--query-image: {path}: {error}.") from error
    return queries


def about(search: Search, kind: str | None, queries: list[Query], top: int) -> dict[str, Any]:
    """What was searched, and how; in JSON's terms. `kind`: the one that was searched, None for all."""
    described: dict[str, Any] = {
        "source": search.encoder.source,
        "index": str(search.folder) if search.folder else None,
    }
    described["searched"] = {
        name: {
            "name": one.collection.name,
            "num_items": len(one),
            "num_embedded": one.index.num_embedded,
            "num_kept": one.index.num_kept,
            "num_removed": one.index.num_removed,
            "unreadable": list(one.index.unreadable),
        }
        for name, one in search.searched.items()
    }
    for name, one in search.searched.items():
        if one.approximate is not None:
            recall = {"of_items": search.recall_of_approximate(name, top)}
            if queries and name == kind:
                some = queries[:: -(-len(queries) // NUM_SAMPLED)]  # an exact search for all would take what it saves
                recall["of_queries"] = search.recall_of_approximate(name, top, search.features(some))
            described["searched"][name]["recall_of_approximate"] = recall
    return described


def _say_what_is_left_out(search: Search) -> None:
    for kind, one in search.searched.items():
        if unreadable := one.index.unreadable:
            count = f"1 {kind}" if len(unreadable) == 1 else f"{len(unreadable)} {kind}s"
            named = "".join(f"\n  {visible(line)}" for line in unreadable[:MAX_NAMED])
            more = f"\n  ... and {len(unreadable) - MAX_NAMED} more" if len(unreadable) > MAX_NAMED else ""
            print(f"left out, since it can't be read: {count}{named}{more}", file=sys.stderr)


def _print_in_words(queries: list[Query], found: list[list[Hit]], described: dict[str, Any]) -> None:
    for query, hits in zip(queries, found, strict=True):
        print(visible(query.name if query.text is None else query.text))
        for hit in hits:
            text = "" if hit.text is None or hit.text == hit.id else f"  {hit.text}"
            print(visible(f"  {hit.score:.4f}  {hit.id}{text}{'  (the same file)' if hit.is_duplicate else ''}"))
        print()
    for line in _about_in_words(described):
        print(line)


def _about_in_words(described: dict[str, Any]) -> list[str]:
    lines = [f"{described['source']}"]
    for one in described["searched"].values():
        changes = [(one["num_embedded"], "embedded now"), (one["num_removed"], "gone since the last time")]
        changed = "".join(f", {count} {what}" for count, what in changes if count)
        lines.append(f"{one['name']}: {one['num_items']}{changed}")
        for what, recall in one.get("recall_of_approximate", {}).items():
            lines.append(f"approximate search found {recall:.1%} of the exact results {what.replace('_', ' ')}")
    if described["index"] is not None:
        lines.append(f"index: {described['index']}")
    if "contact_sheet" in described:
        lines.append(f"contact sheet: {described['contact_sheet']}")
    return [visible(line) for line in lines]


def _query_as_json(query: Query) -> dict[str, str]:
    return {"text": query.text} if query.text is not None else {"image": query.name}


def _as_json(hits: list[Hit]) -> list[dict[str, Any]]:
    listed = []
    for hit in hits:
        one: dict[str, Any] = {"id": hit.id, "score": round(hit.score, 6)}
        if hit.kind == "text":
            one["text"] = hit.text
        else:
            one["is_duplicate"] = hit.is_duplicate
        listed.append(one)
    return listed


def json_text(content: dict[str, Any]) -> str:
    """JSON that any terminal takes: file names that are no UTF-8 come as escapes, which JSON has too."""
    return json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def _check_sheet(path: str, asked: Asked, num_queries: int, top: int) -> None:
    check_result_file(Path(path), "--contact-sheet", [".png"])
    if not 0 < num_queries <= MAX_DRAWN or top > MAX_COLUMNS:
        raise UserError(
            f"--contact-sheet draws 1 to {MAX_DRAWN} queries with up to {MAX_COLUMNS} images each; there are {num_queries} "
            f"queries and --top is {top}."
        )
    if asked.kinds == ("text",) or (asked.texts is not None):
        raise UserError("--contact-sheet draws images that were found, and here texts are searched.")
    if asked.features is not None and asked.images is None and asked.split is None:
        raise UserError(
            "--contact-sheet: --features holds no pictures. Name the folder or split they are of beside it."
        )
