"""What notebooks show: pictures and tables as HTML, in which every text is escaped."""

from __future__ import annotations

import html
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

_WIDTH = 200
_MOST_LETTERS = 2000


class Shown:
    """HTML that a notebook shows where an expression has this value."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    _repr_html_ = __str__


def png_file(picture: Image.Image | NDArray[np.uint8]) -> bytes:
    """A picture as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, "PNG")
    return file.getvalue()


def figure(picture: Image.Image | NDArray[np.uint8], words: str, *, width: int | None = _WIDTH) -> str:
    """A picture with words below it, `width` pixels wide, or as wide as it is."""
    size = "" if width is None else f' width="{width}"'
    address = f"data:image/png;base64,{b64encode(png_file(picture)).decode()}"
    return _block(f'<img src="{address}" alt="{escaped(words)}"{size}>', words)


def quotation(text: str, words: str) -> str:
    """A text of a node with words below it."""
    return _block(f"<div style='width: {_WIDTH}px; white-space: pre-wrap'>{escaped(text)}</div>", words)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows below the names of their columns."""
    lines = [f"<tr>{''.join(f'<td>{escaped(value)}</td>' for value in row)}</tr>" for row in rows]
    head = "".join(f"<th>{escaped(name)}</th>" for name in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def escaped(value: object) -> str:
    """A value as text of HTML, cut where it is very long."""
    return html.escape(str(value)[:_MOST_LETTERS])


def _block(inside: str, words: str) -> str:
    style = "display: inline-block; margin: 4px; vertical-align: top"
    return f"<figure style='{style}'>{inside}<figcaption>{escaped(words)}</figcaption></figure>"
