"""Hashes that name things: versions, item ids, seeds, checksums."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import xxhash

from graphbuild.contracts import LineageDocument

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return _CANONICAL.encode(value)


def version_of(document: LineageDocument) -> str:
    """`v` + 12 hex digits of the BLAKE2b of the canonical document. The `v` keeps readers from guessing a number."""
    text = canonical_json(document.model_dump(mode="json"))
    return "v" + hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def item_id_of(source: str, key: str, sha256: str | None = None) -> str:
    """32 hex digits from (source, key); `sha256` tells a replaced item (`--accept-changed`) from its forerunner."""
    text = canonical_json([source, key] if sha256 is None else [source, key, sha256])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def seed_of(version: str, item_id: str, variant: int) -> int:
    """The seed of one request, 0 <= seed < 2**63: a function of (version, item_id, variant) alone."""
    digest = hashlib.blake2b(f"{version}/{item_id}/{variant}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def checksum(data: Any) -> str:
    """xxh3_128 of a bytes-like value, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_of(value: Any) -> str:
    """16 hex digits of the BLAKE2b of a JSON value's canonical text."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=8).hexdigest()
