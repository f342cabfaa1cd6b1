"""The offline default: the real photographs that scikit-image's wheel carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from graphbuild.sources.base import Entry, Source, SourceItem, Unusable


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph: our one-line caption, and what scikit-image's documentation says of its origin."""

    caption: str
    licence: str | None = None
    attribution: str | None = None
    group: str | None = None


_STEREO = "Middlebury 2014 stereo benchmark (Scharstein et al., GCPR 2014)"

PHOTOS: Mapping[str, Photo] = {
    "chelsea.png": Photo("The face of a tabby cat with green eyes, close up.", "CC0-1.0", "Stefan van der Walt"),
    "coffee.png": Photo(
        "A cup of coffee on a red saucer with a spoon, on a wooden table.",
        "CC0-1.0",
        "Rachel Michetti, courtesy of Pikolo Espresso Bar",
    ),
    "astronaut.png": Photo(
        "A smiling astronaut in an orange space suit, with a flag and a model space shuttle behind her.",
        "public domain",
        "NASA",
    ),
    "rocket.jpg": Photo("A white rocket on its launch pad at dusk, between four towers.", "public domain", "SpaceX"),
    "motorcycle_left.png": Photo(
        "A red motorcycle in a garage full of shelves, boxes and chairs.", None, _STEREO, "motorcycle"
    ),
    "motorcycle_right.png": Photo(
        "A red motorcycle in a garage, seen from slightly further to the right.", None, _STEREO, "motorcycle"
    ),
    "camera.png": Photo(
        "A man in a dark coat looks through a camera on a tripod, on a lawn in front of a city.",
        "CC0-1.0",
        "Lav Varshney",
    ),
    "coins.png": Photo(
        "Four rows of old Greek coins on a dark background.",
        "no known copyright restrictions",
        "Brooklyn Museum Collection",
    ),
    "clock_motion.png": Photo(
        "A wall clock, blurred by a horizontal movement of the camera.", "public domain", "Stefan van der Walt"
    ),
    "text.png": Photo("Handwritten formulas, photographed at an angle.", "public domain", "Wikipedia, Corner.png"),
    "page.png": Photo("A printed page with a heading and a paragraph about segmentation, unevenly lit."),
    "moon.png": Photo("The grey surface of the moon with a few craters."),
    "hubble_deep_field.jpg": Photo("Hundreds of small coloured galaxies on a black sky.", "public domain", "NASA"),
    "ihc.png": Photo(
        "Glands of the colon under a microscope, stained brown and blue.",
        "no known copyright restrictions",
        "Center for Microscopy And Molecular Imaging (CMMI)",
    ),
    "retina.jpg": Photo(
        "The retina of a human eye with its blood vessels, a red disc on black.", "CC0-1.0", "Mikael Häggström"
    ),
}
"""File name -> photograph, ordinary ones first. Licence and attribution as the docstrings of `skimage.data` (0.26)
state them; None where they say nothing. Left out: drawings, charts, holograms, textures of unknown making, and tiny
crops."""


@dataclass(frozen=True, kw_only=True)
class Sample(Source):
    """The photographs of `PHOTOS`, read from the installed scikit-image: no network, no settings.

    The two motorcycles are a stereo pair of one scene and share a group.
    """

    name: ClassVar[str] = "sample"
    by_key: ClassVar[bool] = False

    def entries(self) -> Sequence[Entry]:
        """The photographs this scikit-image carries. Neither it nor a file is opened.

        The stamp is the size alone: the files are released data, and their mtime is that of the installation.
        """
        folder = _folder()
        found = [(name, folder / name) for name in PHOTOS]
        entries = [Entry(name, str(path.stat().st_size)) for name, path in found if path.is_file()]
        if not entries:
            raise ValueError(f"source 'sample': no photographs in {folder}; reinstall scikit-image")
        return entries

    def read(self, keys: Sequence[str]) -> Iterator[SourceItem]:
        """The files as they are, with caption, licence and attribution."""
        folder = _folder()
        for key in keys:
            yield _item(key, PHOTOS[key], folder / key)


def _folder() -> Path:
    # find_spec of the top-level package does not import it, which would take most of a second.
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("source 'sample' needs scikit-image: pip install scikit-image")
    return Path(spec.submodule_search_locations[0]) / "data"


def _item(key: str, photo: Photo, path: Path) -> SourceItem:
    data: bytes | None
    try:
        data = path.read_bytes()
        image: bytes | Unusable = data
    except FileNotFoundError:
        data, image = None, Unusable("missing")
    return SourceItem(
        key=key,
        uri=f"skimage/data/{key}",
        original=data,
        nodes={"image": image},
        licence=photo.licence,
        attribution=photo.attribution,
        group=photo.group,
        caption=photo.caption,
    )
