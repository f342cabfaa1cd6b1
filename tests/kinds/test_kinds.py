"""Every kind is declared once, completely, and with words that read well inside a sentence."""

from __future__ import annotations

import re

import pytest

from graphbuild.kinds.phrases import PHRASES
from graphbuild.kinds.registry import KINDS, Kind, kind_of

CODECS = {
    "source": "image reference style_reference",
    "png1": "canny scribble lines foreground_mask",
    "jpeg_gray": "hed lineart",
    "png8": "depth",
    "jpeg444": "normal",
    "labels": "semantic clothes segments mask",
    "pose": "pose",
    "boxes": "boxes text_lines",
    "text": "caption edit_text background_text edit_instruction background_instruction",
    "jpeg": "style_content style_semantic edit_global",
    "png": "flow edit_local",
}
DEGRADATIONS = """
    blur compression sr_x2 sr_x4 pixelate defocus gaussian_blur oversharpen gaussian_noise poisson_noise
    salt_pepper_noise mosaic contrast_strengthen contrast_weaken quantization jpeg brighten darken low_light
    saturate_strengthen saturate_weaken gray color_distortion inpainting rotate_90 rotate_180 rotate_270 barrel
    pincushion elastic rain frost
"""
SEEDED = "inpaint_box inpaint_brush inpaint_random masked_box masked_brush masked_random tile"
PICTURES = [kind for kind in KINDS.values() if kind.family != "text"]


def named(group: str) -> list[str]:
    return [kind.name for kind in KINDS.values() if kind.family == group]


def test_stored_kinds_have_the_codecs_of_the_design() -> None:
    expected = {name: codec for codec, names in CODECS.items() for name in names.split()}
    assert {kind.name: kind.codec for kind in KINDS.values() if not kind.is_computed} == expected


def test_computed_kinds_and_their_parents() -> None:
    computed = {kind.name: kind.parents for kind in KINDS.values() if kind.is_computed}
    cut_outs = dict.fromkeys(("foreground", "background"), ("image", "foreground_mask"))
    assert computed == cut_outs | dict.fromkeys([*DEGRADATIONS.split(), *SEEDED.split()], ("image",))
    assert all(KINDS[parent].codec for parents in computed.values() for parent in parents), "a computed kind is chained"


def test_groups() -> None:
    assert named("image") == ["image", "reference"]
    assert named("text") == ["caption", "edit_text", "background_text", "edit_instruction", "background_instruction"]
    assert named("style") == ["style_reference", "style_content", "style_semantic"]
    assert named("edit") == ["edit_local", "edit_global"]
    assert named("degradation") == DEGRADATIONS.split() and len(named("degradation")) == 32
    assert len(KINDS) == 69 and list(KINDS) == [kind.name for kind in KINDS.values()]


@pytest.mark.parametrize("kind", PICTURES, ids=lambda kind: kind.name)
def test_every_picture_has_four_good_phrases(kind: Kind) -> None:
    assert len(set(kind.phrases)) == len(kind.phrases) >= 4
    for phrase in kind.phrases:
        assert re.fullmatch(r"(a|an|the) [\w '-]+\w", phrase), f"{phrase!r}: an article, then words without commas"
        assert 3 <= len(phrase.split()) <= 16, f"{phrase!r} is too short or too long to stand in a list"
        assert " into " not in phrase, f"{phrase!r} would be torn apart by 'turns ... into ...'"
    assert all(re.match(r"an [aeiou]|an HED|a [^aeiou]|the ", phrase) for phrase in kind.phrases)


def test_no_phrase_stands_for_two_kinds_and_none_is_left_over() -> None:
    phrases = [phrase for kind in PICTURES for phrase in kind.phrases]
    assert len(set(phrases)) == len(phrases)
    assert set(PHRASES) == {kind.name for kind in PICTURES}
    assert all(KINDS[name].phrases == () for name in named("text"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rotate_90", r"clockwise"),
        ("rotate_270", r"counter-clockwise|clockwise by 270"),
        ("edit_local", r"replaced|another|exchanged|different"),
        ("edit_global", r"another background|new (setting|surroundings|background)|background was changed"),
        ("style_content", r"keeps|old place|unchanged|same content|left alone"),
        ("style_semantic", r"free|not the exact layout|loosely|newly"),
    ],
)
def test_phrases_say_what_sets_the_kind_apart(name: str, words: str) -> None:
    assert [phrase for phrase in KINDS[name].phrases if not re.search(words, phrase)] == []


def test_rotate_90_never_speaks_of_the_other_direction() -> None:
    assert not any("counter" in phrase for phrase in KINDS["rotate_90"].phrases)


def test_a_derived_kind_inherits() -> None:
    derived = kind_of("edit_local.canny")
    assert (derived.name, derived.codec, derived.phrases) == ("edit_local.canny", "png1", KINDS["canny"].phrases)
    assert kind_of("canny") is KINDS["canny"]


@pytest.mark.parametrize("name", ["cany", "", "nowhere.canny", "edit_local.", "image.cany"])
def test_an_unknown_kind_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown kind {re.escape(repr(name))}.*background, .*canny"):
        kind_of(name)


def test_a_computed_kind_of_another_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'edit_local.blur'.*computed from image only"):
        kind_of("edit_local.blur")
