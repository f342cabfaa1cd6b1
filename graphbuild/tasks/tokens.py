"""The words of tasks whose cells are views: a token for each task, classes with their colours, the subject, captions.

They are those of OneDiffusion's prompt guide (github.com/lehduong/OneDiffusion, PROMPT_GUIDE.md; D. Le et al., arXiv
2411.16318), such as

    [[semanticmap2image]] <#00FFFF cyan mask: dragon> <#FF0000 red mask: bird> A dragon coils around a tower.
    [[subject_driven]] <item: dog> [[img0]] A dog on a beach. [[img1]] A dog in front of a grey wall.

A token stands for a pair of kinds in both directions: which view is made is said by the noise alone. Kinds that the
guide does not have get a token of the same form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphbuild.kinds.registry import Kind
from graphbuild.tasks.instruction import Pick
from graphbuild.tasks.labels import Colour

PUBLISHED: Mapping[str, str] = {
    "canny": "canny2image",
    "depth": "depth2image",
    "hed": "hed2img",
    "pose": "pose2image",
    "boxes": "boundingbox2image",
    **dict.fromkeys(("semantic", "segments", "mask", "clothes"), "semanticmap2image"),
    **dict.fromkeys(("edit_local", "edit_global"), "image_editing"),
    **dict.fromkeys(("blur", "defocus", "gaussian_blur"), "deblurring"),
    **dict.fromkeys(("inpainting", "masked_box", "masked_brush", "masked_random"), "image_inpainting"),
    "reference": "subject_driven",
}
"""Kind -> the guide's token for it."""

OWN: Mapping[str, str] = {
    **dict.fromkeys(("sr_x2", "sr_x4", "pixelate"), "super_resolution"),
    **dict.fromkeys(("gaussian_noise", "poisson_noise", "salt_pepper_noise"), "denoising"),
    **dict.fromkeys(("compression", "jpeg", "quantization", "oversharpen"), "artifact_removal"),
    "mosaic": "demosaicing",
    **dict.fromkeys(("contrast_strengthen", "contrast_weaken"), "contrast_correction"),
    **dict.fromkeys(("brighten", "darken", "low_light"), "exposure_correction"),
    **dict.fromkeys(("saturate_strengthen", "saturate_weaken", "color_distortion"), "color_correction"),
    "gray": "colorization",
    **dict.fromkeys(("rotate_90", "rotate_180", "rotate_270"), "rotation"),
    **dict.fromkeys(("barrel", "pincushion", "elastic"), "undistortion"),
    "rain": "deraining",
    "frost": "defrosting",
    "tile": "tile2image",
    **dict.fromkeys(("style_reference", "style_content", "style_semantic"), "style_transfer"),
}
"""Kind -> a token in the manner of the guide; every other kind has `<kind>2image`."""

TYPES: Mapping[str, str] = {
    **dict.fromkeys(("faceid", "idcustomization", "idcustomisation", "identity"), "faceid"),
    **dict.fromkeys(("multiview", "multiviewgeneration", "novelview"), "multiview"),
}
"""Task type, letters only -> the token of tasks with several pictures of one subject; `subject_driven` for others."""

COLOURS: Mapping[str, Colour] = {
    "red": (255, 0, 0),
    "lime": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "orange": (255, 165, 0),
    "purple": (128, 0, 128),
    "brown": (165, 42, 42),
    "green": (0, 128, 0),
    "pink": (255, 192, 203),
    "teal": (0, 128, 128),
    "darkorange": (255, 140, 0),
    "blueviolet": (138, 43, 226),
    "darkgreen": (0, 100, 0),
    "orangered": (255, 69, 0),
    "navy": (0, 0, 128),
    "gold": (255, 215, 0),
    "turquoise": (64, 224, 208),
    "orchid": (218, 112, 214),
}
"""The guide's colours of classes."""

MOST_CLASSES = 12
"""Classes of one picture that get a colour, the largest first: text encoders cut long prompts."""

_NAMES = {colour: name for name, colour in COLOURS.items()}
_MARKS = {"labels": "mask", "boxes": "boundingbox"}
_SEVERAL = ("subject_driven", "faceid")
"""Tasks in which each picture has a caption of its own."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture of a task, as the words speak of it.

    Attributes:
        number: its place among all pictures of the task, counted from 0.
        caption: what it shows, or how it is to be made; empty where nobody says it.
        labels: names and colours of what a label map or boxes show; the colours are of `COLOURS`.
    """

    kind: Kind
    number: int = 0
    caption: str = ""
    labels: Sequence[tuple[str, Colour]] = ()


def compose(views: Sequence[View], *, type_name: str, item: str, token: str | None = None) -> tuple[str, str]:
    """The words of a task: the tokens, classes and subject; and the captions.

    Args:
        views: in the order shown, what is to be made first; without example rows.
        type_name: the task's type, which tells pictures of a person and of a scene from others of one subject.
        item: what the subject is called; may be empty.
        token: the path's own, in place of those of its kinds.
    """
    tokens = [token] if token else _tasks(views, type_name)
    words = [f"[[{token}]]" for token in tokens]
    for view in views:
        mark = _MARKS.get(view.kind.codec or "")
        words += [f"<#{_hex(rgb)} {_NAMES[rgb]} {mark}: {name}>" for name, rgb in dict.fromkeys(view.labels)]
    if "subject_driven" in tokens and item:
        words.append(f"<item: {item}>")
    return " ".join(words), _captions(views, several=any(token in _SEVERAL for token in tokens))


def token_of(kind: Kind) -> str:
    """The token of tasks between a picture and this kind, without brackets. `edit_local.canny` has that of `canny`."""
    base = kind.name.rpartition(".")[2]
    return PUBLISHED.get(base) or OWN.get(base) or f"{base}2image"


def drawn_colours(names: Sequence[str], column: int, pick: Pick) -> dict[str, Colour]:
    """A different colour for each of the first `MOST_CLASSES` names, so that a colour says nothing about a class."""
    left, drawn = list(COLOURS.values()), dict[str, Colour]()
    for number, name in enumerate(list(dict.fromkeys(names))[:MOST_CLASSES]):
        drawn[name] = left.pop(pick(f"colour:{column}:{number}", len(left)))
    return drawn


def _tasks(views: Sequence[View], type_name: str) -> list[str]:
    of_subject = TYPES.get(re.sub(r"[^a-z]", "", type_name.lower()), "subject_driven")
    tokens = [token_of(view.kind) for view in views if view.kind.name != "image"]
    if sum(view.kind.name == "image" for view in views) > 1:
        tokens.insert(0, "subject_driven")
    named = [of_subject if token == "subject_driven" else token for token in tokens]
    return list(dict.fromkeys(named)) or ["text2image"]


def _captions(views: Sequence[View], *, several: bool) -> str:
    """The caption of what is made; of every picture, by its number, where there are several of one subject."""
    said = [(view.number, view.caption) for view in views if view.caption or _is_photo(view)]
    if not several or len(said) < 2:
        return next((caption for _, caption in said if caption), "")
    return " ".join(f"[[img{number}]] {caption}".strip() for number, caption in said)


def _is_photo(view: View) -> bool:
    return view.kind.family == "image" and "." not in view.kind.name


def _hex(rgb: Colour) -> str:
    return "".join(f"{part:02X}" for part in rgb)
