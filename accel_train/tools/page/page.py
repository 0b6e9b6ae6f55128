"""A page in one file: no network, dark and light, readable on a telephone and without scripts."""

from collections.abc import Iterable, Sequence
from importlib.resources import files

from markupsafe import Markup

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""Content security policy: whatever a caption or a name holds, the page can't load anything."""


def page(title: str, sections: Sequence[tuple[str, Markup]], *, subtitle: str = "") -> str:
    """The whole HTML text; each section has a heading, an anchor and an entry in the contents."""
    own = files("accel_train.tools.page")
    style = Markup(own.joinpath("page.css").read_text(encoding="utf-8"))
    script = Markup(own.joinpath("page.js").read_text(encoding="utf-8"))
    named = [(anchor(heading), heading, content) for heading, content in sections]
    contents = Markup("").join(Markup('<a href="#{}">{}</a>').format(name, heading) for name, heading, _ in named)
    body = Markup("\n").join(
        Markup('<section id="{0}" aria-labelledby="{0}-heading"><h2 id="{0}-heading">{1}</h2>{2}</section>').format(
            name, heading, content
        )
        for name, heading, content in named
    )
    whole = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        "<title>{title}</title><style>{style}</style></head>\n<body>"
        '<a class="skip" href="#content">Skip to the content</a>'
        "<header><h1>{title}</h1><p>{subtitle}</p><nav aria-label='Contents'>{contents}</nav></header>\n"
        '<main id="content">{body}</main>\n<script>{script}</script></body></html>\n'
    ).format(
        policy=POLICY,
        title=title,
        style=style,
        subtitle=subtitle,
        contents=contents if len(named) > 1 else "",
        body=body,
        script=script,
    )
    return str(whole)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str, numbers: bool = True) -> Markup:
    """A table that scrolls by itself where it is wider than the page. Columns after the first are set as numbers."""
    # A long name with underscores may break after them, or a table of scores is wider than any screen.
    broken = [Markup("_<wbr>").join(name.split("_")) for name in header]
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in broken)
    kind = "numbers" if numbers else "words"

    def row(cells: Sequence[object]) -> Markup:
        first = Markup('<th scope="row">{}</th>').format(cells[0])
        return Markup("<tr>{}</tr>").format(first + Markup("").join(Markup("<td>{}</td>").format(c) for c in cells[1:]))

    return Markup(
        '<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table class="{kind}">'
        "<caption><span>{caption}</span></caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    ).format(caption=caption, kind=kind, head=head, rows=Markup("\n").join(row(cells) for cells in rows))


def folded(summary: str, content: Markup, *, is_open: bool = False) -> Markup:
    """Content that unfolds at a click."""
    return Markup("<details{}><summary>{}</summary>{}</details>").format(
        Markup(" open") if is_open else "", summary, content
    )


def tiles(readings: Iterable[tuple[str, str, str]]) -> Markup:
    """A row of figures: (name, value, a remark or nothing)."""
    return Markup("<dl class='tiles'>{}</dl>").format(
        Markup("").join(
            Markup("<div><dt>{}</dt><dd>{}{}</dd></div>").format(
                name, value, Markup("<small>{}</small>").format(remark) if remark else ""
            )
            for name, value, remark in readings
        )
    )


def anchor(heading: str) -> str:
    """A heading as an id."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in heading.lower()).split())
