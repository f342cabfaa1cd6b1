"""A grid task as a labelled picture for people."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from graphbuild.images.codecs import Pixels

MARGIN = 12
LABEL = 28
HOLE = (214, 39, 40)
_INK = (20, 20, 20)
_TEXT_SIZE = 15
_LINE = 20


def visible(text: str) -> str:
    """Text as one line: line breaks, control characters, marks of direction and halves of characters as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def column_width(labels: Sequence[str], cell_width: int) -> int:
    """Pixels from the left side of one column to that of the next: as wide as its cells and the longest label."""
    return max(cell_width, *(round(_font().getlength(label)) for label in labels)) + MARGIN


def draw(
    cells: Sequence[Sequence[Pixels]], labels: Sequence[str], holes: Collection[int], words: Sequence[str]
) -> Image.Image:
    """RGB: labels above the columns, cells below each other, paragraphs of words under them.

    Args:
        cells: rows of H x W x 3 RGB uint8, the query row last.
        holes: columns of the last row that get a red frame.
    """
    from PIL import Image, ImageDraw

    font = _font()
    across = column_width(labels, max(row[0].shape[1] for row in cells))
    down = max(row[0].shape[0] for row in cells) + MARGIN
    per_line = max(40, len(labels) * across // 8)
    lines = [line for paragraph in words for line in textwrap.wrap(visible(" ".join(paragraph.split())), per_line)]
    bottom = LABEL + len(cells) * down
    width = max(len(labels) * across, MARGIN + round(max(map(font.getlength, lines)))) + MARGIN
    sheet = Image.new("RGB", (width, bottom + _LINE * len(lines) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(labels):
        left = MARGIN + column * across
        pen.text((left, 3), label, _INK, font)
        for row, shown in enumerate(cells):
            top, (height, wide) = LABEL + row * down, shown[column].shape[:2]
            sheet.paste(Image.fromarray(shown[column]), (left, top))
            if row == len(cells) - 1 and column in holes:
                pen.rectangle((left - 4, top - 4, left + wide + 3, top + height + 3), outline=HOLE, width=4)
    pen.multiline_text((MARGIN, bottom), "\n".join(lines), _INK, font)
    return sheet


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=_TEXT_SIZE)
