"""OneDiffusion's words (arXiv 2411.16318): a token for the task, colours of classes, and what each picture shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphbuild.tasks.instruction import Instruction, Keep, Pick, kept
from graphbuild.tasks.labels import Colour, colour_name
from graphbuild.tasks.paths import TaskPath

TOKENS: Mapping[str, str] = {
    "canny": "canny2image", "hed": "hed2img", "depth": "depth2image", "pose": "pose2image",
    "semantic": "semanticmap2image", "segments": "semanticmap2image", "mask": "semanticmap2image",
    "boxes": "boundingbox2image", "inpainting": "image_inpainting", "reference": "subject_driven",
    **dict.fromkeys(("blur", "gaussian_blur", "defocus"), "deblurring"),
    **dict.fromkeys(("edit_local", "edit_global"), "image_editing"),
}  # fmt: skip
"""Kind -> the published token of a task that makes a picture from it, or of one that makes it."""


def token_of(path: TaskPath) -> str:
    """The token of a task: its own, that of its first given kind, or that of what it makes; `text2image` if nothing is
    given. A kind without a published token has one of the same form."""
    given = [kind for cell, kind in enumerate(path.kinds) if cell not in path.targets]
    made = [path.kinds[target] for target in path.targets]
    if path.token or not given:
        return path.token or "text2image"
    edits = [kind for kind in made if TOKENS.get(kind) == "image_editing"]
    first = next((kind for kind in (*edits, *given) if kind in TOKENS), given[0])
    return TOKENS.get(first, f"{first}2image")


def compose(
    path: TaskPath, labels: Sequence[tuple[str, Colour]], captions: Sequence[str], pick: Pick, keep: Keep
) -> Instruction:
    """The words of one task, such as `[[semanticmap2image]] <#FFFF00 yellow mask: mouse> a mouse on a table`.

    Args:
        labels: names of classes and their RGB colours in the maps and boxes that are shown.
        captions: of the views in their order, `[[img0]]` is the first; of one item there is one.
        pick: draws what is kept; see `compose` in `graphbuild.tasks.instruction`.
        keep: the chances of keeping the content (colours and captions) and everything.
    """
    if not kept("all", keep.all, pick):
        return Instruction("", "", "")
    colours = [f"<#{red:02X}{green:02X}{blue:02X} {colour_name((red, green, blue))} mask: {name}>"
               for name, (red, green, blue) in labels]  # fmt: skip
    several = any(captions) and len(captions) > 1
    shown = [f"[[img{view}]] {caption}".strip() if several else caption for view, caption in enumerate(captions)]
    content = " ".join(part for part in (*colours, *shown) if part)
    return Instruction("", f"[[{token_of(path)}]]", content if kept("content", keep.content, pick) else "")
