"""Names made by hashing: they must never change, or every graph would be rebuilt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphbuild.annotators.base import params_of
from graphbuild.annotators.canny import Canny
from graphbuild.contracts import LineageDocument
from graphbuild.engine.rows import scrub
from graphbuild.hashing import canonical_json, checksum, digest_of, item_id_of, seed_of, version_of
from tests.support.annotators import Styles

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _document(**changes: Any) -> LineageDocument:
    values: dict[str, Any] = {
        "annotator": "canny", "code_version": 1, "params": {"low": 100.0, "high": 200.0}, "model": None,
        "codec": {"canny": "png1"}, "schema_version": 1, "parents": {"image": "v000000000000"},
    }  # fmt: skip
    return LineageDocument(**(values | changes))


def test_pinned_names() -> None:
    """Guards against a changed hash or canonical text, which would orphan every existing graph."""
    assert canonical_json({"b": [1, 2.5, None, True], "a": "ü/\n"}) == '{"a":"ü/\\n","b":[1,2.5,null,true]}'
    assert version_of(_document()) == "vbcbe7908f739"
    assert item_id_of("source:folder", "a/b.jpg") == "bc85fc5137c0baa98f490dfb3874cace"
    assert item_id_of("source:folder", "a/b.jpg", "00") == "e7c9bb1067b58607f561bc864da6aa3f"
    assert seed_of("v000000000000", "00", 0) == 8093983331826631462
    assert checksum(b"graphbuild") == "b39a9f06bcae667568303a666170e2c9"
    assert digest_of([1, "a"]) == "24168933fb1d122f"


def test_version_covers_every_field() -> None:
    """Guards against a field left out of the hash: a change that reruns nothing."""
    changes: list[dict[str, Any]] = [
        {"annotator": "other"}, {"code_version": 2}, {"params": {"low": 50.0, "high": 200.0}}, {"model": "abc"},
        {"codec": {"canny": "png8"}}, {"schema_version": 2}, {"parents": {"image": "v111111111111"}},
        {"author": "somebody"},
    ]  # fmt: skip
    versions = {version_of(_document(**change)) for change in [{}, *changes]}
    assert len(versions) == len(changes) + 1
    assert set(LineageDocument.model_fields) == {name for change in changes for name in change}


def test_parameters_that_do_not_change_pixels_stay_out() -> None:
    """Guards against the number of variants, or a default of a parameter added later, restarting a graph."""
    assert params_of(Styles(variants=2)) == params_of(Styles(variants=9)) == {}
    assert params_of(Canny()) == {"low": 100.0, "high": 200.0}
    assert params_of(Canny(of="reference")) == {"of": "reference", "low": 100.0, "high": 200.0}


@given(JSON)
def test_canonical_json_is_json_and_ignores_order(value: Any) -> None:
    """Guards against text that does not read back, or that depends on the order a dict was filled in."""
    text = canonical_json(value)
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


def test_canonical_json_refuses_nan() -> None:
    """Guards against `NaN` in a document, which is not JSON."""
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


@given(st.text(), st.text(), st.text())
def test_item_ids_differ(source: str, key: str, other: str) -> None:
    """Guards against two keys sharing an id, for example by joining source and key without a separator."""
    assert (item_id_of(source, key) == item_id_of(source, other)) == (key == other)
    assert item_id_of(source, key) != item_id_of(source, key, "00")
    assert len(item_id_of(source, key)) == 32
    if other:
        assert item_id_of(source + other, key) != item_id_of(source, other + key)


@given(st.text(), st.text(), st.integers(0, 1000))
def test_seeds_fit_int64_and_differ(version: str, item_id: str, variant: int) -> None:
    """Guards against a seed that overflows the int64 column, or equal noise for all variants."""
    seed = seed_of(version, item_id, variant)
    assert 0 <= seed < 2**63
    assert seed != seed_of(version, item_id, variant + 1)


@pytest.mark.parametrize(
    ("message", "left_out"),
    [
        ("cannot open /home/someone/a b.jpg", ["home", "someone"]),
        ("cannot open '/data/x.jpg': no", ["/data", "x.jpg"]),
        ("open ~/cache/x failed", ["cache"]),
        (r"cannot open C:\Users\me\x.jpg", ["Users", "me"]),
        ("object at 0x7f3a91 is dead", ["7f3a91"]),
        ("refused by 10.1.2.3:8080", ["10.1.2.3", "8080"]),
        ("GET https://user:secret@host.example/a?b=c failed", ["secret", "host.example"]),
        ("failed at 2024-05-06 07:08:09.123", ["2024", "07:08"]),
        ("failed at 07:08:09", ["07:08"]),
    ],
)
def test_scrub(message: str, left_out: list[str]) -> None:
    """Guards against machine facts in an edge's detail: equal failures would give different bytes, and leak."""
    scrubbed = scrub(message)
    assert not [word for word in left_out if word in scrubbed], scrubbed
    assert scrub(message) == scrub(scrubbed), "scrubbing twice must change nothing"


def test_scrub_keeps_what_helps() -> None:
    """Guards against a scrubber that eats the message itself."""
    assert scrub("expected a H x W x 3 uint8 array, got (4, 4) and/or 3/4 of it") == (
        "expected a H x W x 3 uint8 array, got (4, 4) and/or 3/4 of it"
    )
    assert scrub("one\n  two") == "one two" and len(scrub("x " * 1000)) <= 300
