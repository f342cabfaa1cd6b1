"""The kinds of node a graph can hold: name, family, codec and the phrases that name them in an instruction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from graphbuild.config.lookup import suggestion
from graphbuild.kinds import computed
from graphbuild.kinds.phrases import PHRASES

if TYPE_CHECKING:
    from graphbuild.images.codecs import Pixels
    from graphbuild.images.node import Node

    Compute = Callable[[Mapping[str, Node], int], Pixels]

Family = Literal["image", "condition", "style", "edit", "text", "degradation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """The declaration of one kind of node.

    Attributes:
        name: the word used in code, columns, folders and paths, snake case.
        family: one of `image, condition, style, edit, text, degradation`.
        codec: how it is stored (a name for `graphbuild.images.codecs.codec_of`); None for a computed kind.
        description: one line for people.
        phrases: noun phrases that stand for this picture inside an instruction, such as
            "a Canny edge map"; text kinds have none.
        computed: makes the picture of a computed kind, H x W x 3 RGB uint8, from a mapping of parent kind -> node and
            a seed (0 <= seed < 2**63, the only source of randomness); None for a stored kind.
        parents: the stored kinds that a computed kind is made from.
        version: of a computed kind; bumped when the same parents and seed give other pixels.
        seeded: whether the picture of a computed kind depends on the seed.
    """

    name: str
    family: Family
    codec: str | None
    description: str
    phrases: tuple[str, ...] = ()
    computed: Compute | None = field(default=None, compare=False, repr=False)
    parents: tuple[str, ...] = ()
    version: int = 1
    seeded: bool = False

    @property
    def is_computed(self) -> bool:
        """True if the kind is made on read from `parents` and never stored."""
        return self.computed is not None


def _stored(name: str, family: Family, codec: str, description: str) -> Kind:
    return Kind(name=name, family=family, codec=codec, description=description, phrases=PHRASES.get(name, ()))


def _cut_out(name: str, compute: Compute, description: str) -> Kind:
    return Kind(
        name=name, family="condition", codec=None, description=description, phrases=PHRASES.get(name, ()),
        computed=compute, parents=("image", "foreground_mask"),
    )  # fmt: skip


def _seeded(name: str, compute: Compute, description: str) -> Kind:
    return Kind(
        name=name, family="condition", codec=None, description=description, phrases=PHRASES.get(name, ()),
        computed=compute, parents=("image",), seeded=True,
    )  # fmt: skip


def _degradation(name: str, description: str, *, version: int = 1) -> Kind:
    return Kind(
        name=name, family="degradation", codec=None, description=description, phrases=PHRASES.get(name, ()),
        computed=partial(computed.degraded, name), parents=("image",), version=version, seeded=True,
    )  # fmt: skip


_DECLARED: tuple[Kind, ...] = (
    _stored("image", "image", "source", "the picture of the item, which everything else describes"),
    _stored("reference", "image", "source", "another picture of the same subject"),
    _stored("caption", "text", "text", "what the image shows, in words"),
    _stored("edit_text", "text", "text", "what the image shows with another subject, in words"),
    _stored("background_text", "text", "text", "what the image shows with another background, in words"),
    _stored("edit_instruction", "text", "text", "what to do to the image so that it shows another subject, in words"),
    _stored("background_instruction", "text", "text", "what to do to the image so that it shows another background"),
    _stored("canny", "condition", "png1", "Canny edges, white on black"),
    _stored("hed", "condition", "jpeg_gray", "soft learned edges, bright on black"),
    _stored("lineart", "condition", "jpeg_gray", "a line drawing, light on black"),
    _stored("scribble", "condition", "png1", "thick strokes along the main edges, white on black"),
    _stored("lines", "condition", "png1", "straight line segments, white on black"),
    _stored("depth", "condition", "png8", "relative depth, near is bright"),
    _stored("normal", "condition", "jpeg444", "surface normals as colours"),
    _stored("pose", "condition", "pose", "body keypoints of the people, drawn as coloured skeletons"),
    _stored("semantic", "condition", "labels", "one class for every pixel"),
    _stored("clothes", "condition", "labels", "the garment or part of a person that each pixel shows"),
    _stored("segments", "condition", "labels", "regions that follow objects and parts, without classes"),
    _stored("mask", "condition", "labels", "masks of named objects, one colour each"),
    _stored("boxes", "condition", "boxes", "bounding boxes of named objects"),
    _stored("text_lines", "condition", "boxes", "boxes of the lines of text, named by what they say"),
    _stored("flow", "condition", "png", "where each pixel goes in the reference: directions as hues"),
    _stored("foreground_mask", "condition", "png1", "main subject white, the rest black"),
    _cut_out("foreground", computed.foreground, "the image where the foreground mask is white, black elsewhere"),
    _cut_out("background", computed.background, "the image where the foreground mask is black, black elsewhere"),
    _seeded("inpaint_box", partial(computed.inpaint_mask, "box"), "a white box on black, where to paint"),
    _seeded("inpaint_brush", partial(computed.inpaint_mask, "brush"), "white brush strokes on black, where to paint"),
    _seeded("inpaint_random", partial(computed.inpaint_mask, "random"), "white irregular regions, where to paint"),
    _seeded("masked_box", partial(computed.masked, "box"), "the image, grey where its inpaint_box is white"),
    _seeded("masked_brush", partial(computed.masked, "brush"), "the image, grey where its inpaint_brush is white"),
    _seeded("masked_random", partial(computed.masked, "random"), "the image, grey where its inpaint_random is white"),
    _seeded("tile", computed.tile, "the image at a few dozen pixels, enlarged again"),
    _stored("style_reference", "style", "source", "a picture in the style that a stylised image takes on"),
    _stored("style_content", "style", "jpeg", "the image in a new style, content and layout kept"),
    _stored("style_semantic", "style", "jpeg", "the subject of the image in a new style, layout free"),
    _stored("edit_local", "edit", "png", "the image with its main object replaced, background bit-equal"),
    _stored("edit_global", "edit", "jpeg", "the subject of the image with another background"),
    _degradation("blur", "Gaussian, motion, glass, lens, zoom or jitter blur"),
    _degradation("compression", "strong JPEG or JPEG 2000 compression"),
    _degradation("sr_x2", "halved in size and enlarged again"),
    _degradation("sr_x4", "reduced to a quarter in size and enlarged again"),
    _degradation("pixelate", "coarse square blocks"),
    _degradation("defocus", "disc-shaped blur of a lens out of focus"),
    _degradation("gaussian_blur", "Gaussian blur"),
    _degradation("oversharpen", "halos of an unsharp mask that is too strong"),
    _degradation("gaussian_noise", "additive Gaussian noise"),
    _degradation("poisson_noise", "photon noise that grows with brightness"),
    _degradation("salt_pepper_noise", "single pixels set to black or white"),
    _degradation("mosaic", "RGGB Bayer mosaic, one channel a pixel"),
    _degradation("contrast_strengthen", "too much contrast", version=2),
    _degradation("contrast_weaken", "too little contrast", version=2),
    _degradation("quantization", "too few tones"),
    _degradation("jpeg", "JPEG of low quality"),
    _degradation("brighten", "too bright"),
    _degradation("darken", "too dark"),
    _degradation("low_light", "scaled down to about a third of the light"),
    _degradation("saturate_strengthen", "too much saturation"),
    _degradation("saturate_weaken", "too little saturation"),
    _degradation("gray", "no colour"),
    _degradation("color_distortion", "colour channels swapped, emptied or filled"),
    _degradation("inpainting", "thick black or white strokes over the content"),
    _degradation("rotate_90", "rotated by 90 degrees clockwise"),
    _degradation("rotate_180", "rotated by 180 degrees"),
    _degradation("rotate_270", "rotated by 270 degrees clockwise"),
    _degradation("barrel", "barrel distortion of a lens"),
    _degradation("pincushion", "pincushion distortion of a lens"),
    _degradation("elastic", "small random waves"),
    _degradation("rain", "rain streaks"),
    _degradation("frost", "frost as on a window"),
)

INSTRUCTIONS = ("edit_instruction", "background_instruction")
"""Texts that say what to do; other texts say what is to be seen."""

KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _DECLARED})


def kind_of(kind: str | Kind, own: Iterable[Kind] = ()) -> Kind:
    """The declaration of a kind; `edit_local.canny` inherits from `canny`. A `Kind` is returned unchanged.

    Args:
        own: kinds known besides `KINDS`.

    Raises:
        ValueError: no such kind, or a computed kind of another picture than its declared parents; the message
            lists the known ones.
    """
    if isinstance(kind, Kind):
        return kind
    name, known = kind, KINDS if not own else {**KINDS, **{each.name: each for each in own}}
    *owners, base = name.split(".")
    if base not in known or any(owner not in known for owner in owners):
        wrong = next(part for part in (base, *owners) if part not in known)
        raise ValueError(f"unknown kind {name!r}{suggestion(wrong, known)}; known kinds: {', '.join(sorted(known))}")
    kind = known[base]
    if owners and kind.is_computed:  # it would be computed from `image` and not from what the name says
        raise ValueError(f"kind {name!r}: {base!r} is computed from {', '.join(kind.parents)} only; use {base!r}")
    return replace(kind, name=name) if owners else kind


def parents_of(kind: str) -> tuple[str, ...]:
    """The stored kinds that must exist for a kind to exist: the parents of a computed kind, or itself."""
    declared = KINDS.get(kind)
    return declared.parents if declared is not None and declared.is_computed else (kind,)
