"""The page that `search --serve` shows: a form and the results, whole without a script."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from markupsafe import Markup

from accel_train.tools.search.search import Hit, Search
from accel_train.visible import visible

LARGE_TOPS = (10, 20, 50, 100)
NUM_TO_START_FROM = 12
PLACEHOLDER = "red flower, 红色的花 …"


@dataclass(frozen=True, slots=True)
class Asking:
    """What the page was asked: a text, an item or an uploaded image, or nothing yet."""

    kind: str
    """image or text: what to find."""
    top: int
    text: str = ""
    item: tuple[str, int] | None = None
    upload: str = ""
    """Name of an uploaded image."""

    def address(self) -> str:
        asked = {"find": f"{self.kind}s", "top": str(self.top)}
        if self.text:
            asked["q"] = self.text
        if self.item is not None:
            asked["like"] = f"{self.item[0]}:{self.item[1]}"
        if self.upload:
            asked["upload"] = self.upload
        return f"/?{urlencode(asked)}"


def whole_page(search: Search, asking: Asking, found: Sequence[Hit] | None, seconds: float, error: str = "") -> str:
    """HTML. `found` is None before anything was asked; `error` is shown in place of results."""
    title = f"{_title(search, asking)} · search" if found is not None else "Search"
    if error:
        body = Markup('<p class="error" role="alert">{}</p>').format(visible(error))
    elif found is None:
        body = _to_start_from(search, asking)
    else:
        body = _results(search, asking, found, seconds)
    counts = " and ".join(f"{len(one):,} {kind}s" for kind, one in search.searched.items())
    text = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        '<title>{title}</title><link rel="stylesheet" href="/style.css"><script src="/script.js" defer></script></head>\n'
        '<body><a class="skip" href="#content">Skip to the results</a>'
        '<header><h1><a href="/">Search</a></h1><p>{counts} · {source}</p></header>\n'
        '{form}\n<main id="content" tabindex="-1">{body}</main></body></html>\n'
    ).format(
        title=visible(title),
        counts=counts,
        source=visible(search.encoder.source),
        form=_form(search, asking),
        body=body,
    )
    return str(text)


def _form(search: Search, asking: Asking) -> Markup:
    choice = Markup("")
    if len(search.kinds) > 1:
        choice = Markup('<label>Find <select name="find">{}</select></label>').format(
            Markup("").join(_option(f"{kind}s", kind == asking.kind) for kind in search.kinds)
        )
    tops = sorted({*LARGE_TOPS, asking.top})
    amount = Markup('<label>Show <select name="top">{}</select></label>').format(
        Markup("").join(_option(str(top), top == asking.top) for top in tops)
    )
    return Markup(
        '<div class="ask"><form id="by-text" action="/" method="get" role="search">'
        '<label class="text">Text <input type="search" name="q" value="{text}" maxlength="1000" autofocus '
        'autocomplete="off" placeholder="{placeholder}"></label>{choice}{amount}<button>Search</button></form>\n'
        '<form id="by-image" action="/upload?{kept}" method="post" enctype="multipart/form-data">'
        '<label>Image <input type="file" name="image" accept="image/*" required></label>'
        "<button>Search by image</button></form></div>"
    ).format(
        text=visible(asking.text),
        placeholder=PLACEHOLDER,
        choice=choice,
        amount=amount,
        kept=urlencode({"find": f"{asking.kind}s", "top": asking.top}),
    )


def _option(value: str, is_chosen: bool) -> Markup:
    return Markup("<option{}>{}</option>").format(Markup(" selected") if is_chosen else "", value)


def _title(search: Search, asking: Asking) -> str:
    if asking.item is not None:
        return _caption(search, *asking.item)
    return asking.text or "an image"


def _caption(search: Search, kind: str, row: int) -> str:
    """A text itself, an image's id."""
    searched = search.searched[kind]
    content = searched.content(row) if kind == "text" else None
    return content if isinstance(content, str) else searched.id(row)


def _results(search: Search, asking: Asking, found: Sequence[Hit], seconds: float) -> Markup:
    of_image = asking.upload or (asking.item is not None and asking.item[0] == "image")
    picture = Markup("")
    if asking.upload:
        picture = Markup('<img class="query" src="/upload/{}" alt="The query image">').format(asking.upload)
    elif asking.item is not None and of_image:
        picture = Markup('<img class="query" src="/picture/{}" alt="The query image">').format(asking.item[1])
    name = "an image" if asking.upload else _title(search, asking)
    quoted = visible(name) if of_image else f"“{visible(name)}”"
    how = "approximate" if search.searched[asking.kind].approximate is not None else "exact"
    return Markup(
        '<div class="asked">{picture}<div><h2>{kinds} {relation} {name}</h2>'
        '<p class="note" role="status">{count} nearest, {how}, {milliseconds:.0f} ms</p></div></div>{items}'
    ).format(
        picture=picture,
        kinds="Images" if asking.kind == "image" else "Texts",
        relation="like" if of_image and asking.kind == "image" else "for",
        name=quoted,
        count=len(found),
        how=how,
        milliseconds=1000 * seconds,
        items=_items(search, asking, found, has_scores=True),
    )


def _to_start_from(search: Search, asking: Asking) -> Markup:
    """Items from all over, each a query at a click."""
    searched = search.searched[asking.kind]
    count = min(NUM_TO_START_FROM, len(searched))
    rows = [place * len(searched) // count for place in range(count)]
    hits = [Hit(asking.kind, row, searched.id(row), 0.0, _caption(search, asking.kind, row)) for row in rows]
    return Markup("<h2>Type a text, choose an image, or start from one of these</h2>{}").format(
        _items(search, asking, hits, has_scores=False)
    )


def _items(search: Search, asking: Asking, found: Sequence[Hit], *, has_scores: bool) -> Markup:
    items = Markup("").join(_item(search, asking, hit, has_score=has_scores) for hit in found)
    return Markup('<ol class="found of-{}s">{}</ol>').format(asking.kind, items)


def _item(search: Search, asking: Asking, hit: Hit, *, has_score: bool) -> Markup:
    address = replace(asking, text="", upload="", item=(hit.kind, hit.row)).address()
    name, other = visible(hit.id), Markup("")
    if hit.kind == "image":
        shown = Markup('<span class="picture"><img src="/picture/{}" alt="" loading="lazy"></span>').format(hit.row)
    else:
        shown = Markup('<span class="said">{}</span>').format(visible(hit.text or hit.id))
        name = "" if hit.text in (None, hit.id) else name
    if len(search.kinds) > 1:
        kind = next(kind for kind in search.kinds if kind != asking.kind)
        crossed = replace(asking, kind=kind, text="", upload="", item=(hit.kind, hit.row)).address()
        other = Markup('<a class="other" href="{}">its {}s</a>').format(crossed, kind)
    score = Markup("")
    if has_score:
        score = Markup(
            '<span class="score"><meter aria-hidden="true" min="0" max="1" value="{:.4f}"></meter> {:.3f}</span>'
        ).format(max(0.0, hit.score), hit.score)
    same = Markup('<b class="same">the same file</b>') if hit.is_duplicate else ""
    return Markup(
        '<li><a class="like" href="{address}" title="Search by this {kind}">{shown}<span class="name">{name}</span></a>'
        '<p class="line">{score}{same}{other}</p></li>'
    ).format(address=address, kind=hit.kind, shown=shown, name=name, score=score, same=same, other=other)
