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
    cells: Sequence[Sequence[Pixels]], labels: Sequence[Sequence[str]], holes: Collection[tuple[int, int]],
    words: Sequence[str], *, joined: bool = False,
) -> Image.Image:  # fmt: skip
    """RGB: labels above the columns, cells below each other, paragraphs of words under them.

    Args:
        cells: lines of H x W x 3 RGB uint8.
        labels: one for each cell; lines that have those of the line before are labelled once.
        holes: (line, column) of cells that get a red frame.
        joined: whether cells touch each other, as parts of one picture.
    """
    from PIL import Image, ImageDraw

    font, gap = _font(), 0 if joined else MARGIN
    above = [line for at, line in enumerate(labels) if at == 0 or line != labels[at - 1]]
    widest = max(line[0].shape[1] for line in cells)
    across = widest if joined else column_width([label for line in above for label in line], widest)
    down = max(line[0].shape[0] for line in cells) + gap
    tops = [LABEL * len(above) + number * down for number in range(len(cells) + 1)]
    per_line = max(40, len(labels[0]) * across // 8)
    lines = [line for paragraph in words for line in textwrap.wrap(visible(" ".join(paragraph.split())), per_line)]
    width = max(len(labels[0]) * across, MARGIN + round(max(map(font.getlength, lines), default=0))) + MARGIN
    bottom = tops[-1] + MARGIN - gap
    sheet = Image.new("RGB", (width + MARGIN - gap, bottom + _LINE * len(lines) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, named in enumerate(above):
        for column, label in enumerate(named):
            pen.text((MARGIN + column * across, LABEL * number + 3), _fitting(label, across), _INK, font)
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            sheet.paste(Image.fromarray(cell), (MARGIN + column * across, tops[row]))
    for row, column in holes:
        left, top, (height, wide) = MARGIN + column * across, tops[row], cells[row][column].shape[:2]
        pen.rectangle((left - 4, top - 4, left + wide + 3, top + height + 3), outline=HOLE, width=4)
    pen.multiline_text((MARGIN, bottom), "\n".join(lines), _INK, font)
    return sheet


def _fitting(label: str, width: int) -> str:
    """As much of a label as is no wider."""
    while label and _font().getlength(label) > width:
        label = label[:-1]
    return label


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=_TEXT_SIZE)
