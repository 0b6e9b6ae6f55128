"""The page itself: complete, escaped, and unable to load anything."""

from html.parser import HTMLParser

from markupsafe import Markup

from accel_train.tools.page.page import anchor, folded, page, table, tiles

VOID = {"wbr", "meta", "link", "input", "img", "br", "path"}


class Outline(HTMLParser):
    """Checks that tags are closed in order, and collects ids, links and loaded addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "a":
            self.links.append(str(given["href"]))
        if given.get("src") or tag == "link":
            self.loads.append(str(given.get("src") or given["href"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def outline_of(html: str) -> Outline:
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    return outline


def test_a_page_is_whole_and_links_to_its_sections() -> None:
    html = page(
        "run", [("What it is", Markup("<p>x</p>")), ("Scores", tiles([("R@1", "58 %", "best")]))], subtitle="a & b"
    )
    outline = outline_of(html)
    assert {"what-it-is", "scores"} <= set(outline.ids)
    assert [link for link in outline.links if link[1:] not in outline.ids] == []
    assert outline.loads == ["data:,"], "the page loads nothing"
    assert "default-src 'none'" in html.replace("&#39;", "'")
    assert "a &amp; b" in html


def test_content_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    html = page(evil, [(evil, table([evil], [[evil]], caption=evil) + folded(evil, Markup("")))], subtitle=evil)
    assert evil not in html
    outline_of(html)


def test_anchors_are_plain() -> None:
    assert anchor("Right & wrong: text → image") == "right-wrong-text-image"
