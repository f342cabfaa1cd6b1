"""Annotators by name. Nothing is imported until it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from graphbuild.annotators.base import Annotator
from graphbuild.config.lookup import find_class, short_name
from graphbuild.config.strict_yaml import checked

BUILTIN: Mapping[str, str] = {
    "canny": "graphbuild.annotators.canny:Canny",
    "hed": "graphbuild.annotators.hed:Hed",
    "pidinet": "graphbuild.annotators.pidinet:Pidinet",
    "teed": "graphbuild.annotators.teed:Teed",
    "lineart": "graphbuild.annotators.lineart:Lineart",
    "scribble": "graphbuild.annotators.scribble:Scribble",
    "mlsd": "graphbuild.annotators.mlsd:Mlsd",
    "lsd": "graphbuild.annotators.lsd:Lsd",
    "depth_anything": "graphbuild.annotators.depth_anything:DepthAnything",
    "marigold_normals": "graphbuild.annotators.marigold_normals:MarigoldNormals",
    "vitpose": "graphbuild.annotators.vitpose:Vitpose",
    "dwpose": "graphbuild.annotators.dwpose:Dwpose",
    "oneformer": "graphbuild.annotators.oneformer:Oneformer",
    "segformer_clothes": "graphbuild.annotators.oneformer:SegformerClothes",
    "try_on": "graphbuild.annotators.try_on:TryOn",
    "sam2": "graphbuild.annotators.sam2:Sam2",
    "birefnet": "graphbuild.annotators.birefnet:Birefnet",
    "dis_flow": "graphbuild.annotators.dis_flow:DisFlow",
    "grabcut": "graphbuild.annotators.grabcut:Grabcut",
    "grounding_dino": "graphbuild.annotators.grounding_dino:GroundingDino",
    "ppocr": "graphbuild.annotators.ppocr:Ppocr",
    "sam3": "graphbuild.annotators.sam3:Sam3",
    "open_world": "graphbuild.annotators.open_world:OpenWorld",
    "vlm_caption": "graphbuild.annotators.vlm_caption:VlmCaption",
    "source_caption": "graphbuild.annotators.source_caption:SourceCaption",
    "vlm_edits": "graphbuild.annotators.vlm_edits:VlmEdits",
    "vlm_background": "graphbuild.annotators.vlm_edits:VlmBackground",
    "style_picker": "graphbuild.annotators.style_picker:StylePicker",
    "instant_style": "graphbuild.annotators.instant_style:InstantStyle",
    "redux_style": "graphbuild.annotators.redux_style:ReduxStyle",
    "fill_edit": "graphbuild.annotators.fill_edit:FillEdit",
    "depth_edit": "graphbuild.annotators.depth_edit:DepthEdit",
    "outside_mask": "graphbuild.annotators.outside_mask:OutsideMask",
    "changed": "graphbuild.annotators.changed:Changed",
    "cycle": "graphbuild.annotators.cycle:Cycle",
    "mask_boxes": "graphbuild.annotators.mask_boxes:MaskBoxes",
    "normal_depth": "graphbuild.annotators.normal_depth:NormalDepth",
    "pair_quality": "graphbuild.annotators.pair_quality:PairQuality",
    "caption_match": "graphbuild.annotators.caption_match:CaptionMatch",
    "likeness": "graphbuild.annotators.likeness:Likeness",
    "aesthetic": "graphbuild.annotators.picture_classes:Aesthetic",
    "safe": "graphbuild.annotators.picture_classes:Safe",
    "unmarked": "graphbuild.annotators.picture_classes:Unmarked",
}
DEFAULT_FOR: Mapping[str, str] = {
    "canny": "canny",
    "hed": "hed",
    "lineart": "lineart",
    "scribble": "scribble",
    "lines": "mlsd",
    "depth": "depth_anything",
    "normal": "marigold_normals",
    "pose": "vitpose",
    "semantic": "oneformer",
    "clothes": "segformer_clothes",
    "segments": "sam2",
    "foreground_mask": "birefnet",
    "text_lines": "ppocr",
    "flow": "dis_flow",
    "boxes": "open_world",
    "mask": "open_world",
    "caption": "vlm_caption",
    "edit_text": "vlm_edits",
    "background_text": "vlm_background",
    "edit_instruction": "vlm_edits",
    "background_instruction": "vlm_background",
    "style_reference": "style_picker",
    "style_content": "instant_style",
    "style_semantic": "redux_style",
    "edit_local": "fill_edit",
    "edit_global": "depth_edit",
}
"""Kind -> the annotator that makes it unless a pipeline says otherwise."""

GROUP = "graphbuild.annotators"


def resolve(use: str, config: Mapping[str, Any] | None = None) -> Annotator:
    """An annotator from its name (`canny`), a kind it is the default for (`lines`), or `module:Class`.

    Raises:
        ValueError: no such annotator, an unknown parameter, or a value of the wrong type or range; the message lists
            what is valid.
    """
    cls = load_class(use)
    values = dict(config or {})
    try:
        if isinstance(asked := values.get("resources"), Mapping):
            values["resources"] = replace(cls.resources, **asked)  # what it leaves out stays the annotator's own
        return cls(**checked(cls, values))
    except (TypeError, ValueError) as error:  # TypeError: an abstract class, or fields without a value
        raise ValueError(f"annotator {use!r}: {error}") from error


def recorded(use: str, config: Mapping[str, Any], *, named: bool = False) -> Annotator:
    """An annotator as a graph recorded it. A graph may come from anybody: only ours are taken from it, and none with
    an address, key, folder, local model or code to run, which only a command line or a pipeline can give.

    Args:
        named: the command names this very class, so that it may be one that is not ours.

    Raises:
        ValueError: it is not ours, or was made with such a setting; the message says how to name it.
    """
    name = use if named else short_name("annotator", use, BUILTIN)
    annotator = resolve(name, config)
    given = [f.name for f in fields(annotator) if f.metadata.get("trusted") and getattr(annotator, f.name) != f.default]
    given += [field for field, checkpoint in annotator.checkpoints().items() if checkpoint.local]
    if given:
        raise ValueError(
            f"{name} was made with {', '.join(given)}, which is not taken from a graph; name it yourself: "
            "--pipeline FILE"
        )
    return annotator


def load_class(use: str) -> type[Annotator]:
    """The class behind a name; entry points of the group `graphbuild.annotators` are read only for unknown names."""
    cls: type[Annotator] = find_class(
        "annotator", DEFAULT_FOR.get(use, use), BUILTIN, GROUP, Annotator, also=DEFAULT_FOR
    )
    return cls
