"""Producers: annotators in dependency order, each with its lineage and version."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graphbuild.annotators import DEFAULT_FOR
from graphbuild.annotators.base import (
    Annotator,
    Each,
    config_of,
    makes_of,
    name_of,
    needs_of,
    params_of,
    use_of,
    variants_of,
)
from graphbuild.config.lookup import author_of
from graphbuild.contracts import LineageDocument, Live
from graphbuild.engine.records import Producer
from graphbuild.errors import GraphError, MissingWeights
from graphbuild.hashing import version_of
from graphbuild.kinds.registry import KINDS, Kind
from graphbuild.models.checkpoint import Checkpoint, loaded_from
from graphbuild.sources.base import Source, source_params
from graphbuild.store.heads import Head

SCHEMA_VERSION = 1

_WORD = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


def source_producer(source: Source) -> Producer:
    """The source as the first annotator, `source:<name>`, without parents.

    Raises:
        GraphError: a kind of it is no word, or declared otherwise than in `KINDS`.
    """
    kinds, most = source.kinds(), source.variants()
    for kind in kinds:
        _check_kind(kind, f"source {source.name!r}")
    lineage = LineageDocument(
        annotator=f"source:{source.name}",
        code_version=source.code_version,
        params=source_params(source),
        model=None,
        codec={kind.name: source.codec(kind) for kind in kinds},
        schema_version=SCHEMA_VERSION,
        parents={},
        author=author_of(type(source)),
    )
    return Producer(
        name=lineage.annotator,
        version=version_of(lineage),
        use=f"{type(source).__module__}:{type(source).__qualname__}" if lineage.author else source.name,
        config=source_params(source),
        lineage=lineage,
        variants={kind.name: most.get(kind.name, 1) for kind in kinds},
    )


def bind(  # noqa: PLR0917 - what is asked for, then what the graph says
    annotators: Sequence[Annotator],
    sources: Sequence[Producer],
    head: Head,
    variants: Callable[[str, Live], int],
    recorded: Callable[[str], Sequence[str]] = lambda name: (),
    used: Callable[[Live], str | None] = lambda live: None,
) -> list[tuple[Producer, Annotator]]:
    """Order annotators so that parents come first, and fix their versions and the commits of their weights.

    Args:
        sources: producers whose kinds are there already.
        head: kinds of the graph that the run does not make itself.
        variants: how many variants the graph holds of a kind.
        recorded: model identities of an annotator's versions in this graph; the last one is kept.
        used: the class that a version's commits name; None without commits.

    Raises:
        GraphError: two make one kind, a needed kind has no producer, or they need each other.
        MissingWeights: checkpoints that are neither recorded nor on this machine; the message lists them all.
    """
    _refuse_two_producers(annotators)
    made = {kind for annotator in annotators for kind in (k.name for k in makes_of(annotator).values())}
    known: dict[str, tuple[Live, int]] = {k: (live, variants(k, live)) for k, live in head.items() if k not in made}
    for producer in sources:
        known |= _made_by(producer)
    bound: list[tuple[Producer, Annotator]] = []
    waiting = list(annotators)
    pins = _pins(annotators, recorded)
    while waiting:
        ready = [a for a in waiting if all(_kind(need) in known for need in needs_of(a).values())]
        if not ready:
            raise GraphError(_why_stuck(waiting, known, made))
        for annotator in ready:
            pinned = replace(annotator, **pins[id(annotator)])
            producer = _bind_one(annotator, pinned, known, used)
            known |= _made_by(producer)
            bound.append((producer, pinned))
        waiting = [annotator for annotator in waiting if annotator not in ready]
    return bound


def _pins(annotators: Sequence[Annotator], recorded: Callable[[str], Sequence[str]]) -> dict[int, dict[str, Any]]:
    """For each annotator (by id), the fields that name a checkpoint, at the commit that is to be used.

    A commit that the graph was made with stays: a `main` that moved since is no reason to compute anything again.
    """
    pins: dict[int, dict[str, Any]] = {}
    missing: list[str] = []
    for annotator in annotators:
        known = loaded_from(" ".join(recorded(name_of(annotator))))
        try:
            pins[id(annotator)] = {field: _pin(c, known) for field, c in annotator.checkpoints().items()}
        except MissingWeights:
            missing += [f"{name_of(annotator)}: {line}" for line in annotator.missing()]
    refuse_missing(missing)
    return pins


def _pin(checkpoint: Checkpoint, known: Mapping[str, str]) -> str:
    if checkpoint.revision is None and checkpoint.repository in known:
        return known[checkpoint.repository]
    if checkpoint.model in known.values():
        return checkpoint.model
    checkpoint.folder()  # a commit that this graph has not used yet has to be here too
    return checkpoint.model if checkpoint.local else checkpoint.identity()


def refuse_missing(lines: Sequence[str]) -> None:
    """Refuse to start with one error that lists everything missing."""
    if lines:
        listed = "\n  ".join(dict.fromkeys(lines))
        raise MissingWeights(f"not on this machine:\n  {listed}\n(--annotators a,b runs only those it names)")


def _bind_one(
    annotator: Annotator,
    pinned: Annotator,
    known: dict[str, tuple[Live, int]],
    used: Callable[[Live], str | None] = lambda live: None,
) -> Producer:
    needs = needs_of(annotator).values()
    parents = {_kind(need): known[_kind(need)][0] for need in needs}
    counts = {known[need.kind][1] for need in needs if isinstance(need, Each)}
    if len(counts) > 1:
        raise GraphError(f"{name_of(annotator)}: its each() parents have different numbers of variants: {counts}")
    made = makes_of(annotator).values()
    lineage = LineageDocument(
        annotator=name_of(annotator),
        code_version=annotator.code_version,
        params=params_of(annotator),
        model=_identity(pinned),
        codec={kind.name: annotator.codec(kind) for kind in made},
        schema_version=SCHEMA_VERSION,
        parents={kind: live.version for kind, live in sorted(parents.items())},
        author=author_of(type(annotator)),
    )
    # The first release did not name authors in versions; its commits tell whether they are of this very class.
    nameless = lineage.model_copy(update={"author": None})
    if used(Live(annotator=lineage.annotator, version=version_of(nameless))) == use_of(annotator):
        lineage = nameless
    return Producer(
        name=lineage.annotator,
        version=version_of(lineage),
        use=use_of(annotator),
        config=config_of(annotator),
        lineage=lineage,
        variants=dict.fromkeys((kind.name for kind in made), counts.pop() if counts else variants_of(annotator)),
        parents=parents,
    )


def _identity(annotator: Annotator) -> str | None:
    try:
        return annotator.identity()
    except MissingWeights as error:
        refuse_missing([f"{name_of(annotator)}: {error}"])
        raise


def _made_by(producer: Producer) -> dict[str, tuple[Live, int]]:
    live = Live(annotator=producer.name, version=producer.version)
    return {kind: (live, count) for kind, count in producer.variants.items()}


def _kind(need: str | Each) -> str:
    return need.kind if isinstance(need, Each) else need


def _refuse_two_producers(annotators: Sequence[Annotator]) -> None:
    producers: dict[str, str] = {}
    for annotator in annotators:
        for kind in makes_of(annotator).values():
            _check_kind(kind, use_of(annotator))
            if kind.name in producers:
                raise GraphError(
                    f"both {producers[kind.name]} and {name_of(annotator)} make {kind.name!r}; "
                    "name one of them for this run"
                )
            producers[kind.name] = name_of(annotator)


def _check_kind(kind: Kind, maker: str) -> None:
    if not _WORD.fullmatch(kind.name):
        raise GraphError(f"{maker} makes {kind.name!r}: a kind is a snake_case word, it names a folder")
    if KINDS.get(kind.name, kind) != kind:
        raise GraphError(
            f"{maker} declares the kind {kind.name!r} otherwise than graphbuild.KINDS does; write its name alone, or "
            "give yours another name"
        )
    if kind.codec is None:
        raise GraphError(f"{maker} makes {kind.name!r}, which is computed on read: give {', '.join(kind.parents)}")


def _why_stuck(waiting: Sequence[Annotator], known: dict[str, tuple[Live, int]], made: set[str]) -> str:
    lines = []
    for annotator in waiting:
        lacking = [_kind(need) for need in needs_of(annotator).values() if _kind(need) not in known]
        circular = [kind for kind in lacking if kind in made]
        helper = [f"{kind} (add {DEFAULT_FOR[kind]})" if kind in DEFAULT_FOR else kind for kind in lacking]
        why = "which needs it in turn" if circular else f"the graph has {', '.join(sorted(known)) or 'nothing'}"
        lines.append(f"{name_of(annotator)} needs {', '.join(helper)}: {why}")
    return "; ".join(lines)
