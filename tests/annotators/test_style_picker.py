"""Style references out of a folder: which files, in which order, and what is said of bad ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graphbuild.annotators.base import Derived, Request, Skip, params_of
from graphbuild.annotators.style_picker import StylePicker
from graphbuild.contracts import Item
from graphbuild.errors import MissingWeights
from graphbuild.images.codecs import CODECS
from graphbuild.images.node import Node
from graphbuild.kinds.registry import kind_of
from tests.support.tiny_checkpoints_diffusion import tiny_style_picker


def item(number: int = 0) -> Item:
    return Item(number, f"id{number}", f"key{number}", None, None, None, None, None)


def node(kind: str, value: Any) -> Node:
    codec = kind_of(kind).codec
    assert codec is not None
    encoded = CODECS[codec].encode(value)
    return Node(0, kind, 0, "v0", encoded.data, encoded.format, codec, encoded.attrs)


@pytest.fixture
def styles(tmp_path: Path) -> StylePicker:
    return StylePicker(**tiny_style_picker(tmp_path / "styles"))


def picks(picker: StylePicker, number: int, variants: int = 3) -> list[Derived | Skip]:
    requests = [Request(item(number), {}, variant, 100 * number + variant) for variant in range(variants)]
    alone = [picker.annotate([one], picker.load("cpu"))[0] for one in requests]
    assert picker.annotate(requests, picker.load("cpu")) == alone
    return alone


def files(found: list[Derived | Skip]) -> list[str]:
    return [one.attrs["file"] for one in found if isinstance(one, Derived) and one.attrs]


def test_variants_of_one_item_are_different_files(styles: StylePicker) -> None:
    """Guards against draws with replacement: each request knows its own seed only."""
    chosen = [tuple(files(picks(styles, number))) for number in range(60)]
    assert all(len(set(three)) == 3 for three in chosen) and len(set(chosen)) > 12
    counts = Counter(name for three in chosen for name in three)
    assert len(counts) == 4 and min(counts.values()) > 30


def test_a_style_keeps_its_bytes(styles: StylePicker) -> None:
    """Guards against styles that are encoded anew."""
    for one in picks(styles, 5):
        assert isinstance(one, Derived) and one.attrs
        stored = node("style_reference", one.nodes["style_reference"])
        assert stored.bytes == Path(styles.folder, one.attrs["file"]).read_bytes()


def test_surplus_variants_are_skipped(styles: StylePicker) -> None:
    """Guards against a repeat, or an error, where the folder is smaller than the number of variants."""
    assert picks(styles, 0, 6)[4:] == [Skip("too_few_styles")] * 2


def test_broken_files_and_copies_are_left_out(styles: StylePicker) -> None:
    """Guards against one bad file that fails its items, and against two variants that are the same picture."""
    folder = Path(styles.folder)
    (folder / "notes.txt").write_text("no picture")
    (folder / "more").mkdir()
    (folder / "more" / "broken.JPG").write_bytes(b"\xff\xd8 not a picture")
    (folder / "zcopy.png").write_bytes((folder / "style1.png").read_bytes())
    (folder / ".hidden.png").write_bytes((folder / "style1.png").read_bytes()[:-20])
    assert styles.load("cpu") == tuple(f"style{number}.png" for number in range(4))
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no file in .* is a picture: more/broken.JPG \(undecodable\), style0.png"):
        styles.load("cpu")


def test_the_files_are_part_of_the_version(styles: StylePicker) -> None:
    """Guards against new styles under an old version."""
    seen = [styles.identity()]
    folder = Path(styles.folder)
    (folder / "style0.png").rename(folder / "other.png")
    seen.append(styles.identity())
    (folder / "other.png").write_bytes((folder / "style1.png").read_bytes())
    seen += [styles.identity(), replace(styles, variants=2).identity()]
    assert len(set(seen)) == 3 and seen[2] == seen[3]
    folder.rename(folder.with_name("elsewhere"))
    moved = replace(styles, folder=str(folder.with_name("elsewhere")))
    assert moved.identity() == seen[2] and params_of(moved) == params_of(styles) == {}


@pytest.mark.parametrize("folder", ["", "nothing/here"])
def test_no_styles_is_said_before_work_starts(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a run that starts and fails each row, and against an empty name that means the current folder."""
    tiny_style_picker(tmp_path)
    monkeypatch.chdir(tmp_path)
    picker = StylePicker(folder=folder)
    (line,) = picker.missing()
    said = f"folder: {f'{folder!r} has no pictures (' if folder else 'not given; name a folder of style pictures in a'}"
    assert line.startswith(said) and line.endswith("{use: style_picker, folder: styles}")
    with pytest.raises(MissingWeights, match="name a folder"):
        picker.identity()
