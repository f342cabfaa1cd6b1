"""ICC profiles made by hand: RGB by primaries and gamma, grey by gamma, CMYK by the colours of its full inks."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import product

_D50 = (0.9642, 1.0, 0.8249)

DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)), 2.2
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), 2.19921875
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491)), 1.8


def rgb_profile(primaries: Sequence[Sequence[float]], gamma: float, name: str = "test") -> bytes:
    """`primaries`: XYZ of red, green and blue, adapted to D50."""
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma))
    columns = {tag: _xyz(column) for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return _profile(b"RGB ", b"XYZ ", {**columns, **curves}, name)


def grey_profile(gamma: float, name: str = "test") -> bytes:
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)}, name)


def cmyk_profile(name: str = "test") -> bytes:
    """Inks that only take away light: L* = 100 - 60 per colour ink, nothing left under black; a*, b* are 0."""
    colours = bytearray()
    for inks in product((0, 1), repeat=4):
        light = 0 if inks[3] else max(0, 100 - 30 * sum(inks[:3]))
        colours += bytes((round(light * 2.55), 128, 128))
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", 65536 * (at % 4 == 0)) for at in range(9))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + bytes(colours) + ramp * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table}, name, device=b"prtr")


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], name: str, device: bytes = b"mntr") -> bytes:
    text = name.encode() + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": described, b"cprt": b"text\0\0\0\0x\0", b"wtpt": _xyz(_D50), **tags}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, value in tags.items():
        padded = value.ljust(-(-len(value) // 4) * 4, b"\0")
        table += tag + struct.pack(">II", start + len(body), len(value))
        body += padded
    head = bytearray(128)
    head[0:4] = struct.pack(">I", 128 + len(table) + len(body))
    head[8:12], head[12:16], head[16:20], head[20:24], head[36:40] = b"\x02\x40\0\0", device, space, connection, b"acsp"
    head[68:80] = _xyz(_D50)[8:]
    return bytes(head) + table + body
