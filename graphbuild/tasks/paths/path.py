"""Task lists: content, path and path set. Their constructors validate, so Python and YAML share the same rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from graphbuild.hashing import canonical_json, digest_of
from graphbuild.images.codecs import codec_of
from graphbuild.kinds.registry import KINDS, Family, Kind, kind_of, parents_of
from graphbuild.store.conditions import ranges_in
from graphbuild.tasks.paths.layout import USUAL_ORDER, USUAL_WORDS, Layout, Order, Places, Words, places

_SHOWN = {"layout": Layout, "order": Order, "words": Words}
DEFAULT_TYPE = "custom"


def role_kind(role: str) -> str:
    """The kind of a role: `edit_local` for `edit_local:a`."""
    return role.partition(":")[0]


@dataclass(frozen=True, kw_only=True)
class Content:
    """Where a path's caption comes from: the query row's text of kind `source`, which describes the cell `of`."""

    source: str
    of: str

    def check(self, own: Sequence[Kind] = ()) -> None:
        """Refuse what cannot be; `own` are kinds known beside `graphbuild.KINDS`.

        Raises:
            ValueError: `source` is no text kind, or `of` no picture's role.
        """
        if kind_of(self.source, own).family != "text":
            texts = [kind.name for kind in (*KINDS.values(), *own) if kind.family == "text"]
            raise ValueError(f"content: from: {self.source!r} is not a text; allowed: {', '.join(texts)}")
        _check_role(self.of, own)


@dataclass(frozen=True, kw_only=True)
class TaskPath:
    """One task: an ordered list of cells on one item. The order is not derivation.

    Attributes:
        name: unique in its list.
        type: the task type; a type is drawn first, then a path inside it.
        cells: roles, in column order; no role twice.
        targets: positions in `cells` that are generated, ascending, at least one.
        weight: relative to the other paths of its type, >= 0.
        where: conditions on the item, handed to the sampler as they are.
        content: the caption of the query row, or None for a task without one.
        own: declarations of the kinds in it that are not in `graphbuild.KINDS`.
        layout: how the cells are arranged; None is `rows`, or what the objective that trains it wants.
        canvas: the roles of a canvas line by line; a condition may come several times, a target once.
        views: the fewest and most items of one group (a subject, a scene) that a task is made of; None for items of
            different groups, as many as the sampler's `rows` says.
        order: of the columns; None is `shuffled` in rows and `fixed` else.
        words: None is `full` for rows, `content` for a canvas and `tokens` for views.
        token: what `tokens` calls the task; None is by its kinds.

    Raises:
        ValueError: any of the above does not hold; the message names path, value and what is allowed.
    """

    name: str
    type: str = DEFAULT_TYPE
    cells: tuple[str, ...]
    targets: tuple[int, ...]
    weight: float = 1.0
    where: Mapping[str, Any] | None = None
    content: Content | None = None
    own: tuple[Kind, ...] = ()
    layout: Layout | None = None
    canvas: tuple[tuple[str, ...], ...] = ()
    views: tuple[int, int] | None = None
    order: Order | None = None
    words: Words | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"path {self.name!r}: {error}") from None

    def _check(self) -> None:
        for kind in self.own:
            _check_own(kind)
        for role in self.cells:
            _check_role(role, self.own)
        if len(set(self.cells)) != len(self.cells):
            raise ValueError(f"cells: {list(self.cells)} has a role twice; name them apart, as in 'image:other'")
        computed = [kind.name for kind in self.declared if kind.is_computed]
        if twice := sorted({kind for kind in computed if computed.count(kind) > 1}):
            raise ValueError(f"cells: {twice[0]!r} comes twice; it is computed, so both would be the same picture")
        if not self.targets or list(self.targets) != sorted({*self.targets} & {*range(len(self.cells))}):
            raise ValueError(f"targets: {self.targets}; allowed: ascending positions 0..{len(self.cells) - 1}")
        _check_weight("weight", self.weight)
        check_where(self.where or {})
        object.__setattr__(self, "weight", float(self.weight))  # a written 1 and the default 1.0 are one setting
        if self.content is not None:
            self.content.check(self.own)
            if self.content.of not in self.cells:
                raise ValueError(f"content: of: {self.content.of!r} is not a cell; allowed: {', '.join(self.cells)}")
        self._check_layout()

    def _check_layout(self) -> None:
        for name, words in _SHOWN.items():
            if (value := getattr(self, name)) is not None and value not in (allowed := get_args(words)):
                raise ValueError(f"{name}: {value!r}; allowed: {', '.join(allowed)}")
        if self.canvas:
            _check_canvas(self.canvas, self.cells, {self.cells[target] for target in self.targets})
            if self.layout not in (None, "canvas"):
                raise ValueError(f"layout: {self.layout!r}; allowed beside a canvas: canvas")
            object.__setattr__(self, "layout", "canvas")
        if self.layout in ("canvas", "views") and self.order == "shuffled":
            raise ValueError(f"order: 'shuffled'; allowed for layout {self.layout}: fixed")
        if self.views is not None and not (len(self.views) == 2 and 1 <= self.views[0] <= self.views[1]):
            raise ValueError(f"views: {self.views}; allowed: the fewest and the most items, such as [2, 5]")

    def arranged(self, layout: Layout) -> TaskPath:
        """The path with this layout, unless it has one.

        Raises:
            ValueError: it has another one.
        """
        if self.layout not in (None, layout):
            raise ValueError(f"path {self.name!r}: layout: {self.layout!r}; allowed: {layout}")
        return replace(self, layout=layout)

    @property
    def is_fixed(self) -> bool:
        """Whether columns stay in the order of `cells`."""
        return (self.order or USUAL_ORDER[self.layout or "rows"]) == "fixed"

    @cached_property
    def said(self) -> Words:
        """What the words consist of."""
        return self.words or USUAL_WORDS[self.layout or "rows"]

    def places(self, num_rows: int) -> Places:
        """Where the cells of a task of so many rows are shown, as (row, position in `cells`)."""
        canvas = [list(map(self.cells.index, line)) for line in self.canvas]
        return places(self.layout or "rows", num_rows, len(self.cells), self.targets, canvas)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the cells, in their order."""
        return tuple(role_kind(role) for role in self.cells)

    @cached_property
    def nodes(self) -> frozenset[str]:
        """The kinds that a row depends on: those of its cells, and what each is computed from or is a version of, as
        `reference` of `reference.canny`."""
        read = {parent for kind in self.kinds for parent in parents_of(kind)}
        return frozenset({*self.kinds, *read, *(word for kind in (*self.kinds, *read) for word in kind.split("."))})

    @cached_property
    def declared(self) -> tuple[Kind, ...]:
        """What these kinds are."""
        return tuple(kind_of(kind, self.own) for kind in self.kinds)


@dataclass(frozen=True, kw_only=True)
class PathSet:
    """A list of paths and the weights of their types; a type that is not named has weight 1.

    Attributes:
        kind_where: kind -> conditions on the items that tasks with this kind are drawn from. An item that lacks the
            value does not meet them, even if no item has it.

    Raises:
        ValueError: two paths share a name, a type weight is negative, nothing can be drawn, or a condition cannot be
            written down.
    """

    name: str
    paths: tuple[TaskPath, ...]
    type_weights: Mapping[str, float] = field(default_factory=dict)
    kind_where: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [path.name for path in self.paths]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"name: {', '.join(twice)} used twice; allowed: a new name for every path")
        for type_name, weight in self.type_weights.items():
            _check_weight(f"types: {type_name}", weight)
        object.__setattr__(self, "type_weights", {name: float(weight) for name, weight in self.type_weights.items()})
        for where in self.kind_where.values():
            check_where(where)
        if not self._totals():
            raise ValueError("no path can be drawn; at least one needs a positive weight in a type of positive weight")

    @cached_property
    def digest(self) -> str:
        """Digest of the list's content, independent of its name and location: 12 hex digits."""
        said = asdict(self) | {"name": ""}
        for kind in (kind for path in said["paths"] for kind in path["own"]):
            kind["group"] = kind.pop("family")  # its name when the first digests were made
        if not self.kind_where:
            del said["kind_where"]  # as lists were before they could have conditions
        for path in said["paths"]:  # nor had paths a layout
            usual = {"layout": (None, "rows"), "canvas": ((),), "views": (None,), "order": (None,), "words": (None,),
                     "token": (None,)}  # fmt: skip
            for name in [name for name, values in usual.items() if path[name] in values]:
                del path[name]
        return digest_of(said)[:12]

    def arranged(self, layout: Layout) -> PathSet:
        """The list with this layout for all paths that have none.

        Raises:
            ValueError: a path has another one.
        """
        return replace(self, paths=tuple(path.arranged(layout) for path in self.paths))

    def has_chance(self, path: TaskPath) -> bool:
        """False for a path that is switched off, alone or with its type."""
        return path.weight * self.type_weights.get(path.type, 1.0) > 0

    def _totals(self) -> dict[str, float]:
        """Sum of path weights of every type that can be drawn."""
        totals: dict[str, float] = {}
        for path in self.paths:
            if self.has_chance(path):
                totals[path.type] = totals.get(path.type, 0.0) + path.weight
        return totals

    def probabilities(self) -> npt.NDArray[np.float64]:
        """The probability of each path, in the order of `paths`; sums to 1.

        A type is drawn by its weight among the types that have a drawable path, then a path by its weight inside it.
        """
        totals = self._totals()
        all_types = sum(self.type_weights.get(type_name, 1.0) for type_name in totals)
        chances = (
            self.type_weights.get(path.type, 1.0) / all_types * path.weight / totals.get(path.type, 1.0)
            for path in self.paths
        )
        return np.fromiter(chances, np.float64, len(self.paths))


def check_where(where: Mapping[str, Any]) -> None:
    """Refuse conditions that could not be written down.

    Raises:
        ValueError: a value is none of JSON, such as a date that YAML made of an unquoted one, or a range of scores is
            none.
    """
    ranges_in(where)
    for name, condition in where.items():
        try:
            canonical_json(condition)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"where: {name}: {condition!r}; allowed: text (dates in quotes), numbers, true, false and lists of them"
            ) from error


def _check_own(kind: Kind) -> None:
    built_in = KINDS.get(kind.name)
    if built_in is not None and replace(kind, phrases=built_in.phrases) != built_in:
        raise ValueError(
            f"kinds: {kind.name!r} is in graphbuild.KINDS; allowed: other names, or phrases of its own alone"
        )
    if kind.family not in (families := get_args(Family)):
        raise ValueError(f"kinds: {kind.name}: family: {kind.family!r}; allowed: {', '.join(families)}")
    try:
        codec_of(str(kind.codec))
    except ValueError as error:
        raise ValueError(f"kinds: {kind.name}: {error}") from error
    if kind.family != "text" and not all(isinstance(phrase, str) and phrase.strip() for phrase in kind.phrases or [""]):
        raise ValueError(f"kinds: {kind.name}: phrases: {kind.phrases!r}; allowed: noun phrases, at least one")


def _check_canvas(canvas: Sequence[Sequence[str]], cells: Sequence[str], targets: set[str]) -> None:
    shown = [role for line in canvas for role in line]
    if len({len(line) for line in canvas}) != 1 or not shown:
        raise ValueError(f"canvas: {[list(line) for line in canvas]}; allowed: lines of one length")
    if set(shown) != set(cells):
        wrong = sorted(set(shown) ^ set(cells))
        raise ValueError(f"canvas: {wrong[0]!r} is not both a cell and on the canvas; cells: {', '.join(cells)}")
    if twice := sorted(role for role in targets if shown.count(role) > 1):
        raise ValueError(f"canvas: the target {twice[0]!r} comes {shown.count(twice[0])} times; allowed: once")


def _check_role(role: object, own: Sequence[Kind]) -> None:
    if not isinstance(role, str) or role.count(":") > 1 or role.endswith(":"):
        raise ValueError(f"cell {role!r}; allowed: a kind, or kind:name")
    if kind_of(role_kind(role), own).family == "text":
        raise ValueError(f"cell {role!r} is a text; allowed: kinds that are pictures (a text goes into `content`)")


def _check_weight(what: str, weight: object) -> None:
    if isinstance(weight, int | float) and not isinstance(weight, bool) and isfinite(weight) and weight >= 0:
        return
    raise ValueError(f"{what}: {weight!r}; allowed: a finite number >= 0")
