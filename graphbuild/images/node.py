"""One stored or computed value with the edge that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphbuild.images import jpeg, notebook
from graphbuild.images.codecs import Pixels, codec_of
from graphbuild.images.colour import to_srgb
from graphbuild.images.decode import AS_STORED, Meant, decode_image, meant
from graphbuild.images.orientation import UPRIGHT


@dataclass(slots=True)
class Node:
    """One stored value with the edge that made it.

    Attributes:
        kind: its kind, `item_ix` and `variant`: its place; `version`: the lineage key of its producer.
        bytes: exactly what is stored.
        format: `jpeg, png, text, json` or another lower-case Pillow name.
        codec: how `bytes` hold the value.
        attrs: facts its annotator recorded, such as a palette.
        edge: the whole edge row as a dict; empty for a node that is not committed yet.
    """

    item_ix: int
    kind: str
    variant: int
    version: str
    bytes: bytes = field(repr=False)
    format: str
    codec: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    edge: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _picture: Pixels | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def computed(cls, item_ix: int, kind: str, pixels: Pixels) -> Node:
        """A computed node: pixels (H x W x 3 RGB uint8) without stored bytes."""
        node = cls(item_ix, kind, 0, "", b"", "pixels", "source")
        node._picture = pixels
        return node

    def array(self) -> Pixels:
        """The picture, H x W x 3 RGB uint8 (upright, sRGB, alpha over white, first frame); a pose or boxes are drawn.

        Colours of a file with an ICC profile are converted, unless its source has `colours: stored`.

        Raises:
            ValueError: text, and JSON of other kinds, have no picture.
        """
        if self._picture is None:
            picture = self.decoded()
            picture = picture if picture.ndim == 3 else _grey_to_rgb(picture)
            picture.flags.writeable = False
            self._picture = picture
        return self._picture

    def decoded(self, room: Pixels | None = None) -> Pixels:
        """The same, but H x W where red, green and blue are equal, and decoded anew if `array` was not called.

        Args:
            room: H x W x 3 uint8; is filled and returned if the picture has its size and can be decoded in place.

        Raises:
            ValueError: as `array`.
        """
        if self._picture is not None:
            return self._picture
        if room is None or self.format != "jpeg" or not jpeg.fill(room, self.bytes):
            return self._opened()
        if (how := self._meant).orientation != UPRIGHT:
            return self._opened()
        if how.profile is not None:
            room[:] = to_srgb(room, how.profile)
        return room

    def jpeg_size(self) -> tuple[int, int] | None:
        """Width and height of a JPEG that is stored upright, from its header; None for everything else."""
        return jpeg.size(self.bytes) if self._is_upright_jpeg else None

    def at_eighths(self, eighths: int) -> Pixels | None:
        """An upright JPEG at `eighths` / 8 of its size, sides rounded up: H x W x 3 RGB uint8, H x W of a `jpeg_gray`;
        None for a damaged or unusual one."""
        pixels = jpeg.decode(self.bytes, "GRAY" if self.codec == "jpeg_gray" else "RGB", eighths)
        profile = self._meant.profile
        return pixels if pixels is None or profile is None else to_srgb(pixels, profile)

    @property
    def _is_upright_jpeg(self) -> bool:
        return self.format == "jpeg" and self._meant.orientation == UPRIGHT

    @property
    def _meant(self) -> Meant:
        """Orientation and profile of a source JPEG; every other node is stored upright and in sRGB."""
        found = meant(self.bytes) if self.codec == "source" else AS_STORED
        return replace(found, profile=None) if self.attrs.get("colours") == "stored" else found

    def _opened(self) -> Pixels:
        if self.codec == "source":
            return self.values()  # type: ignore[no-any-return]
        codec = codec_of(self.codec)
        values = codec.values(self.bytes, self.format)
        if codec.draw is not None:
            values = codec.draw(values)
        if not isinstance(values, np.ndarray):
            raise ValueError(f"kind {self.kind!r} holds {self.format}, not a picture; use .text or .values()")
        if self.codec == "labels":
            return np.take(np.asarray(self.attrs["palette"], np.uint8), values, axis=0)
        return values

    def values(self) -> Any:
        """The stored values: H x W uint8 labels, depth or mask (0 / 255), the JSON object, or the picture."""
        if self.codec == "source":
            return decode_image(self.bytes, self.format, convert=self.attrs.get("colours") != "stored")
        return codec_of(self.codec).values(self.bytes, self.format)

    @property
    def text(self) -> str:
        """The stored text or JSON document."""
        return self.bytes.decode()

    def _repr_png_(self) -> Any:
        """For notebooks: the picture; a text shows itself."""
        return None if self.codec in ("text", "json") else notebook.png_file(self.array())

    def _repr_html_(self) -> str | None:
        return notebook.quotation(self.text, self.kind) if self.codec in ("text", "json") else None


def _grey_to_rgb(grey: Pixels) -> Pixels:
    import cv2

    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]
