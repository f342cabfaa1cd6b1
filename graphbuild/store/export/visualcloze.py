"""The layout that the reference trainer of VisualCloze reads: `data.json` and a folder for each condition."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphbuild.errors import GraphError
from graphbuild.images.node import Node
from graphbuild.store.export.items import ExportItem, Selection, file_of
from graphbuild.store.export.layouts import Layout, lines, put, read_lines

CONDITIONS: Mapping[str, str] = {
    "image": "target", "reference": "reference", "mask": "mask", "boxes": "bbox", "segments": "sam2_mask",
    "semantic": "uniformer", "foreground_mask": "foreground", "normal": "normal", "depth": "depth", "canny": "canny",
    "hed": "hed", "lines": "mlsd", "pose": "openpose", "edit_global": "DepthEdit",
}  # fmt: skip
"""Our kind -> the key of `condition` in a row."""

STYLES: Mapping[str, tuple[str, int]] = {"style_content": ("InstantStyle", 0), "style_semantic": ("ReduxStyle", 3)}
"""Our kind -> its key, and the variant of `style_reference` that its first variant was made with."""

VERSIONS = {"style_content": 3, "style_semantic": 3, "edit_local": 5}
"""How many variants the trainer expects; a row with fewer has none."""


class VisualCloze(Layout):
    """`data.json` is a list of rows `{quality_assessment, description, collection, condition}`, with absolute paths as
    the reference trainer's `META` entry of type `image_grid_graph200k` reads them; `train.yaml` is such an entry."""

    def __init__(self, selection: Selection, out: Path) -> None:
        super().__init__(selection, out)
        if "image" not in selection.kinds:
            raise GraphError("visualcloze: its target is the kind image; name it in --kinds")

    def write(self, label: str, items: Iterator[ExportItem]) -> list[str]:
        rows, names = list[dict[str, Any]](), list[str]()
        for item in items:
            condition: dict[str, Any] = {}
            for kind, key in CONDITIONS.items():
                if (node := next(iter(item.nodes.get(kind, ())), None)) is not None:
                    condition[key] = self._file(item, key, node, names)
            condition |= self._styles(item, names) | self._edits(item, names)
            rows.append({**_words(item), "condition": condition})
        put(self.out / f".shards/{label}.jsonl", lines(rows))
        return names

    def finish(self, labels: Sequence[str]) -> None:
        rows = [row for label in labels for row in read_lines(self.out / f".shards/{label}.jsonl")]
        put(self.out / "data.json", json.dumps(rows, ensure_ascii=False).encode())
        path = json.dumps(str((self.out / "data.json").resolve()))
        put(self.out / "train.yaml", f"META:\n  - path: {path}\n    type: image_grid_graph200k\n".encode())

    def _file(self, item: ExportItem, key: str, node: Node, names: list[str]) -> str:
        data, ending = file_of(node)
        names.append(f"{key}/{item.row['item_ix']}_{key}.{ending}")
        put(self.out / names[-1], data)
        return str((self.out / names[-1]).resolve())

    def _styles(self, item: ExportItem, names: list[str]) -> dict[str, Any]:
        found, references = {}, item.nodes.get("style_reference", ())
        for kind, (key, first) in STYLES.items():
            styled = list(item.nodes.get(kind, ()))[: VERSIONS[kind]]
            used = list(references)[first : first + VERSIONS[kind]]
            if len(styled) == len(used) == VERSIONS[kind] and None not in styled and None not in used:
                found[key] = {
                    "image_path": [self._file(item, f"{key}_image_{n}", node, names) for n, node in _known(styled)],
                    "style_path": [self._file(item, f"{key}_ref_{n}", node, names) for n, node in _known(used)],
                }
        return found

    def _edits(self, item: ExportItem, names: list[str]) -> dict[str, Any]:
        edits = list(item.nodes.get("edit_local", ()))[: VERSIONS["edit_local"]]
        if len(edits) < VERSIONS["edit_local"] or None in edits:
            return {}
        texts = [node.text if node is not None else "" for node in item.nodes.get("edit_text", ())]
        words = (texts + [""] * len(edits))[: len(edits)]
        paths = [self._file(item, f"FillEdit_image_{n}", node, names) for n, node in _known(edits)]
        return {"FillEdit": {"image_path": paths, "description": words, "name": [""] * len(edits)}}


def _known(nodes: Sequence[Node | None]) -> list[tuple[int, Node]]:
    return [(number, node) for number, node in enumerate(nodes) if node is not None]


def _words(item: ExportItem) -> dict[str, Any]:
    """Subject and description, which the trainer joins with a space, and the marks of the pair."""
    caption = next((node.text for node in item.nodes.get("caption", ()) if node is not None), item.row["caption"] or "")
    subject = item.row["subject"] or ""
    starts = bool(subject) and caption.startswith(f"{subject} ")
    description = {
        "item": subject if starts else "",
        "description_0": caption.removeprefix(f"{subject} ") if starts else caption,
        "description_1": item.row["reference_caption"] or "",
        "category": item.row["category"] or "",
        "description_valid": bool(caption),
    }
    meta = item.meta
    return {
        "quality_assessment": meta.get("quality_assessment"),
        "description": description,
        "collection": str(meta.get("collection") or ""),
    }
