import io

import pytest
from PIL import Image, ImageFont

from accel_train.tools.contact_sheet import (
    FONT,
    GREEN,
    HEADER,
    MARGIN,
    ROW,
    TEXT_WIDTH,
    TILE,
    Found,
    contact_sheet,
    wrapped,
)

TOP = HEADER + 20
LEFT = MARGIN + TEXT_WIDTH


def encoded(colour: tuple[int, ...], size: tuple[int, int] = (40, 40), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def font(size: int = 21) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)


def test_matches_alone_have_a_green_frame() -> None:
    blue = encoded((0, 0, 200))
    queries = [("莲花", [Found(blue, 0.9, False), Found(blue, 0.8, True), Found(blue, 0.7, False)])] * 2
    sheet = contact_sheet(queries)
    for row in range(2):
        middle = TOP + row * ROW + TILE // 2
        edges = [sheet.getpixel((LEFT + column * (TILE + 20) + 1, middle)) for column in range(3)]
        assert [edge == GREEN for edge in edges] == [False, True, False]
        assert sheet.getpixel((LEFT + TILE // 2, middle)) == (0, 0, 200)


def test_it_grows_with_queries_and_images() -> None:
    item = Found(encoded((1, 2, 3), kind="JPEG"), 0.5, True)
    small, tall, wide = (contact_sheet([("字", [item] * n)] * rows) for rows, n in ((1, 5), (3, 5), (1, 8)))
    assert tall.height - small.height == 2 * ROW
    assert tall.width == small.width < wide.width


def test_wide_and_transparent_pictures_keep_their_shape_on_white() -> None:
    wide = contact_sheet([("", [Found(encoded((0, 0, 200), (80, 20)), 0.5, False)])])
    assert wide.getpixel((LEFT + TILE // 2, TOP + TILE // 2)) == (0, 0, 200)
    assert wide.getpixel((LEFT + TILE // 2, TOP + TILE // 4)) == (255, 255, 255)
    clear = contact_sheet([("", [Found(encoded((0, 0, 200, 0)), 0.5, False)])])
    assert clear.getpixel((LEFT + TILE // 2, TOP + TILE // 2)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("莲花", ["莲花"]),
        ("剪头，理发，男，男生理发，较浅肤色", ["剪头，理发，", "男，男生理发，", "较浅肤色"]),
        ("一二三四五六七八九十一二三四五", ["一二三四五六七", "八九十一二三四", "五"]),
        ("a caption with 中文", ["a caption with", "中文"]),
        ("一二三四五六七" * 4, ["一二三四五六七", "一二三四五六七", "一二三四五六…"]),
    ],
)
def test_lines_break_after_commas_then_anywhere_in_chinese(text: str, expected: list[str]) -> None:
    width = 7 * 21
    lines = wrapped(text, font(), width, max_lines=3)
    assert lines == expected
    assert all(font().getlength(line) <= width for line in lines)


def test_the_font_is_small_has_its_licence_and_every_common_character() -> None:
    assert FONT.stat().st_size < 1.5e6
    assert "SIL OPEN FONT LICENSE" in (FONT.parent / "OFL.txt").read_text(encoding="utf-8")
    level_one = bytes(byte for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF) for byte in (high, low))
    characters = level_one.decode("gb2312", errors="ignore")
    assert len(characters) == 3755
    small = font(16)
    missing = bytes(small.getmask("\U0010ffff"))
    assert [c for c in characters + "，。！？：；（）“”—…✓→ABCxyz0189%" if bytes(small.getmask(c)) == missing] == []


def test_a_query_may_be_an_image() -> None:
    red, blue = encoded((200, 0, 0)), encoded((0, 0, 200))
    sheet = contact_sheet([(red, [Found(blue, 0.9, False)])], match_label="the same file")
    assert sheet.getpixel((MARGIN + TILE // 2, TOP + TILE // 2)) == (200, 0, 0)
    assert sheet.getpixel((LEFT + TILE // 2, TOP + TILE // 2)) == (0, 0, 200)


def test_without_matches_there_is_no_legend() -> None:
    item = Found(encoded((0, 0, 200)), 0.9, False)
    with_legend, without = (contact_sheet([("字", [item])], match_label=label) for label in ("right image", None))
    right = with_legend.width - MARGIN - 240, 60, with_legend.width - MARGIN, 110
    assert GREEN in {colour for _, colour in with_legend.crop(right).getcolors(1 << 16)}
    assert without.crop(right).getcolors(1 << 16) == [(240 * 50, (255, 255, 255))]
