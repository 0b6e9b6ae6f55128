"""A picture of what a model finds: queries, texts or images, at the left, the best images for each beside them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from accel_train.data.transforms import open_image

FONT = Path(__file__).parent.parent / "fonts" / "NotoSansCJKsc-subset.otf"

# Lengths in pixels. Shapes are drawn larger and scaled down, because Pillow doesn't smooth their edges.
MARGIN = 48
TEXT_WIDTH = 300
TILE = 136
GAP = 20
HEADER = 132
LEGEND_WIDTH = 260
ROW = TILE + 62
OVERSAMPLING = 4
MOST_CHARACTERS = 500
"""Of a query: more don't fit, and measuring them takes long."""

INK = (24, 28, 33)
SECONDARY = (110, 118, 128)
RULE = (228, 231, 235)
FRAME = (208, 213, 219)
GREEN = (22, 138, 74)
PAPER = (255, 255, 255)

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """One image that a query brought up."""

    image: bytes
    """Encoded as in the dataset."""
    score: float
    """Cosine similarity."""
    is_match: bool


def contact_sheet(
    queries: Sequence[tuple[str | bytes, Sequence[Found]]],
    *,
    title: str = "Text to image",
    subtitle: str = "",
    match_label: str | None = "right image",
) -> Image.Image:
    """One row for each query: its text, or its image as encoded bytes, then the images found, best first.

    Matches have a green frame and a tick. `match_label` says in the legend what a match is; None: there are none.
    """
    columns = max((len(found) for _, found in queries), default=0)
    width = MARGIN + TEXT_WIDTH + max(columns, 3) * (TILE + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, HEADER + len(queries) * ROW + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_header(sheet, draw, title, subtitle, match_label)
    for row, (query, found) in enumerate(queries):
        top = HEADER + row * ROW
        draw.line([(MARGIN, top), (width - MARGIN, top)], fill=RULE)
        if isinstance(query, bytes):
            picture = _fitted(query, TILE)
            sheet.paste(picture, (MARGIN + (TILE - picture.width) // 2, top + 20 + (TILE - picture.height) // 2))
        else:
            _draw_query(draw, query, top)
        for column, item in enumerate(found):
            left = MARGIN + TEXT_WIDTH + column * (TILE + GAP)
            _draw_found(sheet, draw, item, (left, top + 20))
    return sheet


def _draw_header(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, title: str, subtitle: str, match_label: str | None
) -> None:
    draw.text((MARGIN, 58), title, font=_font(30), fill=INK, anchor="ls")
    legend_width = 0 if match_label is None else LEGEND_WIDTH
    subtitle = _shortened(subtitle, _font(15), sheet.width - 2 * MARGIN - legend_width)
    draw.text((MARGIN, 90), subtitle, font=_font(15), fill=SECONDARY, anchor="ls")
    if match_label is None:
        return
    right, baseline = sheet.width - MARGIN, 90
    for label, colour in (("other image", FRAME), (match_label, GREEN)):
        right -= int(_font(15).getlength(label))
        draw.text((right, baseline), label, font=_font(15), fill=SECONDARY, anchor="ls")
        right -= 26
        swatch = _frame(18, colour, 3 if colour == GREEN else 2, radius=5)
        sheet.paste(swatch, (right, baseline - 15), swatch)
        right -= 22


def _draw_query(draw: ImageDraw.ImageDraw, text: str, top: int) -> None:
    font, spacing = _font(21), 31
    lines = wrapped(text[:MOST_CHARACTERS], font, TEXT_WIDTH - 36, max_lines=4)
    first = top + 20 + (TILE - spacing * (len(lines) - 1)) // 2
    for index, line in enumerate(lines):
        draw.text((MARGIN, first + index * spacing), line, font=font, fill=INK, anchor="lm")


def _draw_found(sheet: Image.Image, draw: ImageDraw.ImageDraw, item: Found, corner: tuple[int, int]) -> None:
    left, top = corner
    picture = _fitted(item.image, TILE - 12)
    sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
    frame = _frame(TILE, GREEN if item.is_match else FRAME, 4 if item.is_match else 1, radius=10)
    sheet.paste(frame, corner, frame)
    if item.is_match:
        badge = _tick(28)
        sheet.paste(badge, (left + TILE - 18, top - 10), badge)
    colour = GREEN if item.is_match else SECONDARY
    draw.text((left + TILE / 2, top + TILE + 17), f"{item.score:.2f}", font=_font(14), fill=colour, anchor="mm")


def _fitted(encoded: bytes, side: int) -> Image.Image:
    """The whole picture, as large as a square allows, on the paper's colour where it is transparent."""
    picture = open_image(encoded).convert("RGBA")
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    paper = Image.new("RGB", size, PAPER)
    paper.paste(picture, mask=picture)
    return paper


def _frame(side: int, colour: Colour, thickness: int, *, radius: int) -> Image.Image:
    """A square outline with round corners and white beyond them, so that a picture's corners are cut off."""
    large = Image.new("RGBA", (side * OVERSAMPLING, side * OVERSAMPLING), (*PAPER, 255))
    draw = ImageDraw.Draw(large)
    box = (0, 0, side * OVERSAMPLING - 1, side * OVERSAMPLING - 1)
    draw.rounded_rectangle(box, radius * OVERSAMPLING, (*PAPER, 0), (*colour, 255), thickness * OVERSAMPLING)
    return large.resize((side, side), Image.Resampling.BOX)


def _tick(side: int) -> Image.Image:
    """A white tick in a green disc with a white rim."""
    unit = side * OVERSAMPLING / 28
    large = Image.new("RGBA", (side * OVERSAMPLING, side * OVERSAMPLING), (*PAPER, 0))
    draw = ImageDraw.Draw(large)
    for radius, colour in ((14, PAPER), (12, GREEN)):
        draw.ellipse(
            [(14 - radius) * unit, (14 - radius) * unit, (14 + radius) * unit, (14 + radius) * unit], fill=colour
        )
    points = [(x * unit, y * unit) for x, y in ((8.5, 14.5), (12.5, 18.5), (19.5, 10.5))]
    draw.line(points, fill=PAPER, width=round(2.6 * unit), joint="curve")
    return large.resize((side, side), Image.Resampling.BOX)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, *, max_lines: int) -> list[str]:
    """Lines no wider than `width`, broken after commas where that does, else between Chinese characters or Latin words."""
    lines: list[str] = []
    line = ""
    clauses = re.findall(r".*?[，、；。,;]+\s*|.+$", text, flags=re.DOTALL)
    pieces = [
        piece for clause in clauses for piece in ([clause] if font.getlength(clause) <= width else _pieces(clause))
    ]
    for piece in pieces:
        if line and font.getlength((line + piece).rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line = (line + piece).lstrip()
    lines.append(line.rstrip())
    if len(lines) > max_lines:
        rest = lines[max_lines - 1] + lines[max_lines]
        lines = [*lines[: max_lines - 1], _shortened(rest, font, width)]
    return lines


def _pieces(text: str) -> list[str]:
    """What a line may break between: Chinese characters with the punctuation that follows them, and Latin words."""
    pieces: list[str] = []
    for character in text:
        joins_word = bool(pieces) and character < "⺀" and pieces[-1][-1] < "⺀" and not pieces[-1].endswith(" ")
        closes = bool(pieces) and character in "，。、；：？！”’）》」… "
        if joins_word or closes:
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip("，、 ") + "…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)
