"""Cache keys: everything that the pixels of a cell depend on, as text."""

from __future__ import annotations

from collections.abc import Callable

from graphbuild.errors import MissingNode
from graphbuild.kinds.registry import kind_of, parents_of
from graphbuild.store.offsets import Offsets


def identity(offsets_of: Callable[[str], Offsets], item_ix: int, kind: str, variant: int, *, seed: int) -> str:
    """A text that changes whenever the picture of a node could: of a computed kind from its parents and `seed`.

    Raises:
        MissingNode: it is not stored.
    """
    if (parents := parents_of(kind)) != (kind,):
        of = "+".join(identity(offsets_of, item_ix, parent, 0, seed=seed) for parent in parents)
        return f"{kind}.{_computed_version(kind, seed)}({of})"
    offsets = offsets_of(kind)
    if (spot := offsets.spot(item_ix, variant)) is None:
        raise MissingNode(f"item {item_ix} has no {kind} variant {variant}")
    return f"{kind}.{offsets.version}.{spot.hash.hex()}.{offsets.attrs(spot).hex()}"


def _computed_version(kind: str, seed: int) -> str:
    """What a computed kind's picture depends on besides its parents."""
    declared = kind_of(kind)
    return f"{declared.version}.{seed}" if declared.seeded else f"{declared.version}"
