"""Base classes of annotators: frozen values that read kinds and make kinds."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar

from pydantic import Field

from graphbuild.config.lookup import author_of
from graphbuild.config.strict_yaml import Strict, checked
from graphbuild.contracts import Item
from graphbuild.images.codecs import Value
from graphbuild.images.node import Node
from graphbuild.kinds.registry import Kind, kind_of
from graphbuild.models.checkpoint import Checkpoint

Side = Annotated[int, Field(ge=16, le=4096)]
"""A parameter: the size in pixels at which a network works."""
Steps = Annotated[int, Field(ge=1, le=1000)]
"""A parameter: denoising steps."""
Guidance = Annotated[float, Field(ge=0, le=100)]
"""A parameter: guidance scale."""
Variants = Annotated[int, Field(ge=1, le=1000)]
"""A parameter: how many variants are made of one item."""


@dataclass(frozen=True, slots=True)
class Each:
    """A need met once per variant of the parent: child variant v is made from parent variant v."""

    kind: str


def each(kind: str) -> Each:
    """Ask for every variant of `kind`, one child each; two `each` needs advance together."""
    return Each(kind)


STALL_SECONDS = 900.0
"""See `Resources.stall_s`."""


@dataclass(frozen=True, kw_only=True)
class Resources(Strict):
    """Resources of one actor of an annotator, and its batch size.

    Attributes:
        cpus: CPU cores; annotators that ask for exactly one and no memory share one pool of actors.
        gpus: share of a GPU. 0 with `memory_gb` given: the share of the GPU's memory that `memory_gb` is. Without a GPU
            in the cluster actors run on the CPU.
        memory_gb: memory of the model and one micro-batch on its device, in GB (10^9 bytes).
        batch_size: requests in one call of `annotate`; halved for good by an actor that runs out of GPU memory.
        recycle: units after which an actor is replaced by a fresh process, for libraries that leak memory; 0: never.
        stall_s: seconds without a finished row after which an actor is killed, and its row tried alone; a row that
            stalls again and again fails with the reason `timeout`. Loading a model does not count.
    """

    cpus: Annotated[float, Field(ge=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    memory_gb: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Annotated[int, Field(ge=1)] = 1
    recycle: Annotated[int, Field(ge=0)] = 0
    stall_s: Annotated[float, Field(gt=0)] = STALL_SECONDS


ITEM_FACTS = ("caption", "reference_caption", "subject", "category", "meta")
"""What an annotator may look at of an item and its source may correct."""


@dataclass(frozen=True, slots=True)
class Request:
    """One (item, variant) to annotate. `seed` (0 <= seed < 2**63) is the only source of randomness."""

    item: Item
    inputs: Mapping[str, Node]
    variant: int
    seed: int


@dataclass(frozen=True, slots=True)
class Derived:
    """The result of one request: kind -> array (uint8), text or JSON; an optional score and facts."""

    nodes: Mapping[str, Value]
    score: float | None = None
    attrs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """Nothing can be made for a request, and why: one snake_case word, such as `no_person`."""

    reason: str


def parameter(default: Any, *, output: bool = True, added: bool = False, trusted: bool = False) -> Any:
    """An annotator field with a role in its version.

    Args:
        default: the default value.
        output: False for settings that cannot change a pixel (device, URL, number of variants).
        added: True for a parameter that came after the first release: while it has its default it is
            left out of the version, so that existing graphs do not rerun.
        trusted: True for addresses, keys, folders and code to run: taken from a command line or a pipeline, never
            from what a graph recorded.
    """
    return field(default=default, metadata={"output": output, "added": added, "trusted": trusted})


@dataclass(frozen=True, kw_only=True)
class Annotator(ABC):
    """Subclass, name what it `needs` and `makes`, and write `annotate`. The fields are the configuration; they are
    checked by their types when it is made. `Annotated[float, pydantic.Field(gt=0)]` declares a range, which is not part
    of the version.

    Class variables:
        needs: kinds read; a plain name is its variant 0, `each(kind)` every variant.
        makes: kinds written, by name, or as a `Kind` of your own.
        item_facts: what it looks at of `request.item` besides names; the others are None there. When one of them is
            corrected in the source, the item's rows are made again.
        code_version: bump it when the pixels change.
        deterministic: equal inputs give equal bytes in one environment.
        libraries: import names it needs beyond the core install; looked for before work starts.

    Args:
        resources: what one actor needs. Never part of the version.

    Raises:
        ValueError: a value of the wrong type or range; the message names field, value and what is allowed.
    """

    needs: ClassVar[tuple[str | Each, ...]] = ("image",)
    makes: ClassVar[tuple[str | Kind, ...]]
    item_facts: ClassVar[tuple[str, ...]] = ITEM_FACTS
    code_version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ()
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        if isinstance(asked := self.resources, Mapping):
            object.__setattr__(self, "resources", replace(type(self).resources, **asked))
        checked(type(self), {f.name: getattr(self, f.name) for f in fields(self) if f.init})

    @abstractmethod
    def annotate(self, batch: Sequence[Request], model: Any) -> Sequence[Derived | Skip | Exception]:
        """One result per request, in order. An exception in its place fails that row alone; one that is raised has
        the batch tried again one by one."""

    def load(self, device: str) -> Any:
        """The model, loaded once per actor on its worker; annotators without weights return None."""
        return None

    def reads(self) -> tuple[str | Each, ...]:
        """The needs of this instance: `needs`, unless a parameter adds to them."""
        return self.needs

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        """The weights it loads, by the field that names each; none for annotators without weights."""
        return {}

    def identity(self) -> str | None:
        """What identifies the weights: hub commits, digests of local files, or the version a server declares; None
        without.

        Raises:
            MissingWeights: a checkpoint is not on this machine.
        """
        return " ".join(checkpoint.identity() for checkpoint in self.checkpoints().values()) or None

    def missing(self) -> list[str]:
        """Missing prerequisites, one line each, with the command that gets it."""
        lines = [checkpoint.missing() for checkpoint in self.checkpoints().values()]
        return [*missing_libraries(self.libraries), *(line for line in lines if line)]

    def codec(self, kind: Kind) -> str:
        """The codec a made kind is stored with; the kind's own unless overridden."""
        assert kind.codec is not None
        return kind.codec


@dataclass(frozen=True, kw_only=True)
class Condition(Annotator):
    """An annotator that describes one picture: `of="edit_local"` makes `edit_local.canny` and so on."""

    of: str = parameter("image", added=True)


@dataclass(frozen=True, kw_only=True)
class Score(Annotator):
    """An annotator that says how good each node of the kind `of` is, from 0 (worst) to 1.

    A score `blurred` of `edit_local` is the kind `edit_local.score.blurred`, a JSON document with the `value` and the
    `parts` that it came from; the edge has the value as its score. Task lists ask for it: `where: {score.blurred: [0.6,
    null]}`.

    `annotate` finds the node among the inputs as `judged`, beside variant 0 of what it `needs`, and returns `scored`.

    Args:
        of: the kind that is judged.
    """

    needs: ClassVar[tuple[str | Each, ...]] = ()
    makes: ClassVar[tuple[str | Kind, ...]] = ()
    item_facts: ClassVar[tuple[str, ...]] = ()
    of: str = "image"

    @property
    def called(self) -> str:
        """The name of the score."""
        return name_of(self)


def scored(value: float, **parts: float) -> Derived:
    """A score in [0, 1], what lies beyond is cut off, with the figures it came from."""
    kept = min(1.0, max(0.0, float(value)))
    document = {"value": round(kept, 6), "parts": {name: round(float(part), 6) for name, part in parts.items()}}
    return Derived({"score": document}, score=kept)


def missing_libraries(names: Sequence[str]) -> list[str]:
    """One line if any of these cannot be imported; nothing is imported to find out."""
    absent = [name for name in names if find_spec(name) is None]
    return [f"Python packages {', '.join(absent)}: pip install 'graphbuild[models]'"] if absent else []


def name_of(annotator: Annotator | type[Annotator]) -> str:
    """The class name in snake case: `DepthAnything` is `depth_anything`."""
    cls = annotator if isinstance(annotator, type) else type(annotator)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def use_of(annotator: Annotator) -> str:
    """How a later process finds the class again: the short name of one of ours, else `module:Class`."""
    if author_of(type(annotator)) is None:
        return name_of(annotator)
    return f"{type(annotator).__module__}:{type(annotator).__qualname__}"


def needs_of(annotator: Annotator) -> dict[str, str | Each]:
    """Name inside the annotator -> the graph kind it stands for, after `of`."""
    needs = {need.kind if isinstance(need, Each) else need: need for need in annotator.reads()}
    if isinstance(annotator, Score):
        return {**needs, "judged": each(annotator.of)}
    of = getattr(annotator, "of", "image")
    if of != "image":
        needs["image"] = each(of)
    return needs


def makes_of(annotator: Annotator) -> dict[str, Kind]:
    """Name inside the annotator -> the graph kind it makes, after `of`."""
    if isinstance(annotator, Score):
        name, what = f"{annotator.of}.score.{annotator.called}", f"how good {annotator.of} is: {annotator.called}"
        return {"score": Kind(name=name, family="text", codec="json", description=what)}
    of = getattr(annotator, "of", "image")
    made = {kind if isinstance(kind, str) else kind.name: kind for kind in annotator.makes}
    prefix = "" if of == "image" else f"{of}."
    return {name: kind_of(prefix + kind) if isinstance(kind, str) else kind for name, kind in made.items()}


def variants_of(annotator: Annotator) -> int:
    """How many variants it makes from one parent: its `variants` field, else 1."""
    return int(getattr(annotator, "variants", 1))


def config_of(annotator: Annotator) -> dict[str, Any]:
    """Every parameter and its value, JSON-ready; of `resources` what differs from the class's own."""
    config = {f.name: _plain(getattr(annotator, f.name)) for f in fields(annotator) if f.name != "resources"}
    own, default = annotator.resources, type(annotator).resources
    asked = {f.name: getattr(own, f.name) for f in fields(own) if getattr(own, f.name) != getattr(default, f.name)}
    return {**config, "resources": asked} if asked else config


def params_of(annotator: Annotator) -> dict[str, Any]:
    """The fields that belong in the version."""
    return {
        f.name: _plain(getattr(annotator, f.name))
        for f in fields(annotator)
        if f.name not in ("variants", "resources")
        and f.metadata.get("output", True)
        and not (f.metadata.get("added", False) and getattr(annotator, f.name) == f.default)
    }


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
