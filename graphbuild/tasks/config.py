"""Sampler configuration: masks, rows, filters, splits and held-out tasks. Defaults come first and leave no trace
in the generator's key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from graphbuild.config.strict_yaml import Share, Strict
from graphbuild.store.conditions import SCORE
from graphbuild.tasks.instruction import Keep, Layout
from graphbuild.tasks.paths import check_where

Mask = Literal["code", "paper", "target"]
Split = Literal["train", "validation"]
Weights = Literal["listed", "coverage"]
Repeat = Literal["path", "geometry"]
CellFit = Literal["crop_square", "stretch_square", "aspect"]
RowSizes = Literal["shared", "own"]
HoleFill = Literal["black", "grey"]
DegradeAt = Literal["512", "source", "cell"]
Decode = Literal["exact", "fast"]

ROWS = (0.3, 0.4, 0.3)
"""Probability of 1, 2, 3 rows, the query included (VisualCloze, released training code)."""


@dataclass(frozen=True, kw_only=True)
class HeldOut(Strict):
    """Tasks that are kept away from training: those that are given all of `given` and generate all of `holes`.

    It is matched after the mask is drawn, so that no random mask trains a task in reverse. A sampler refuses kinds
    that neither its paths nor `graphbuild.KINDS` have.

    Attributes:
        given: kinds among the shown cells of the query row; empty for any.
        holes: kinds among its holes; empty for any.

    Raises:
        ValueError: both are empty.
    """

    given: tuple[str, ...] = ()
    holes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("given", "holes"):
            if isinstance(kinds := getattr(self, name), str):
                object.__setattr__(self, name, (kinds,))
        super().__post_init__()
        if not self.given and not self.holes:
            raise ValueError("neither given nor holes; allowed: at least one kind")

    def matches(self, given: Collection[str], holes: Collection[str]) -> bool:
        """True if a task with these kinds given and generated is held out."""
        return set(self.given) <= set(given) and set(self.holes) <= set(holes)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(Strict):
    """Configuration of a sampler; the first value named is the default.

    Attributes:
        mask: for paths with one target. `code`: with probability 1/2 the hole is any one column instead of the target,
            as in the released training code. `paper`: with probability 1/2 one of the others is a hole as well.
            `target`: the hole is always the target.
        rows: relative chances of 1, 2, ... rows, the query included.
        weights: of the paths of a type. `listed`: as the list says. `coverage`: times the number of items that serve a
            path, so that the few items of a rare path are not seen more often than the many of another.
        item_weight: a score such as `score.changed`: an item is drawn in proportion to the lowest that its nodes of a
            path's kinds have, of several variants the best; with none above 0, never. Paths whose kinds do not have
            it, and `views`, draw their items alike.
        repeat: what the consecutive walks that `path_repeat` counts have in common. `path`: their path and number of
            rows. `geometry`: numbers of rows and columns and their arrangement, and each has its own path of those
            that fit it; every path is drawn as often.
        keep: chances of keeping parts of the words in training; evaluation keeps all.
        layout: the layout sentence, `pipeline` or `random`.
        where: conditions on items beside those of a path; see `graphbuild.store.conditions`.
        split: None for all items, or the side of the leakage split to draw from.
        validation: the share of leakage groups that is on the validation side.
        held_out: tasks that are never drawn.

    `keep` and the tasks of `held_out` may be given as mappings, as in YAML.

    Raises:
        ValueError: a value, or a key of a mapping, is not allowed; the message says what is.
    """

    mask: Mask = "code"
    rows: tuple[Annotated[float, Field(ge=0)], ...] = ROWS
    weights: Weights = "listed"
    item_weight: str | None = None
    repeat: Repeat = "path"
    keep: Keep = field(default_factory=Keep)
    layout: Layout = "pipeline"
    where: Mapping[str, Any] = field(default_factory=dict)
    split: Split | None = None
    validation: Share = 0.05
    held_out: tuple[HeldOut, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.held_out, HeldOut | Mapping):
            object.__setattr__(self, "held_out", (self.held_out,))
        super().__post_init__()
        object.__setattr__(self, "where", dict(self.where))
        check_where(self.where)
        if self.item_weight is not None and not self.item_weight.startswith(SCORE):
            raise ValueError(f"item_weight: {self.item_weight!r}; allowed: a score, such as {SCORE}pair_quality")
        if not sum(self.rows) > 0:
            raise ValueError(f"rows: {self.rows}; allowed: weights with a positive sum")

    def changed(self) -> dict[str, Any]:
        """Fields that differ from their default, as JSON values: they enter the generator's key."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(self) if getattr(self, f.name) != getattr(_DEFAULTS, f.name)}


_DEFAULTS = SamplerConfig()


@dataclass(frozen=True, kw_only=True)
class DataConfig(Strict):
    """One of the graphs that are sampled together.

    Attributes:
        graph: its folder or address.
        paths: its task list, by name or `.yaml` file; None for that of the mixture.
        weight: relative chance of a grid task of it.

    Raises:
        ValueError: a weight that is not above 0.
    """

    graph: str
    paths: str | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


@dataclass(frozen=True, kw_only=True)
class CellConfig(Strict):
    """Configuration of cells; every field is recorded in a task's document.

    Attributes:
        cell_fit: `crop_square` cuts the centre square, `stretch_square` squeezes the whole picture into one (as
            VisualCloze trains), `aspect` keeps the shape (as diffusers' pipeline does). A task with several holes has
            squares under `aspect` too: `crop_square`.
        row_sizes: under `aspect`, `shared` gives every row the size of the query row, `own` lets its first given
            picture decide, as in the pipeline.
        hole_fill: `black` is what the pipeline shows in a hole; `grey` is the middle of the range.
        degrade_at: what a degradation acts on: `512` is the picture fitted to a long side of 512 px, never enlarged,
            `source` the picture as it is stored, `cell` the cell cut from it. A quarter turn of a cell that is no
            square swaps its sides; it is cut and resized to the cell's size again.
        decode: `fast` decodes a JPEG that is larger than a cell at some eighths of its size, as many as it takes (in
            the frequency domain, libjpeg-turbo), before it is resized; the pixels of photographs are 30 to 51 dB from
            the exact ones. Not for degradations.

    Raises:
        ValueError: a value that is not allowed.
    """

    cell_fit: CellFit = "crop_square"
    row_sizes: RowSizes = "shared"
    hole_fill: HoleFill = "black"
    degrade_at: DegradeAt = "512"
    decode: Decode = "exact"
