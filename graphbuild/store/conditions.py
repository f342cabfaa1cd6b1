"""Conditions on items: which rows of the items table meet `{"quality_assessment.objectConsistency": {">=": 3}}`; and
on scores of nodes: `{"score.changed": [0.6, null]}`."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.config.lookup import suggestion
from graphbuild.errors import GraphError

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, allowed: value in allowed,
}


SCORE = "score."
Range = tuple[float, float]
"""The lowest and the highest value allowed."""


def ranges_in(where: Mapping[str, Any]) -> dict[str, Range]:
    """The conditions on scores, by name.

    Raises:
        ValueError: one is no list of two numbers, or null for no bound.
    """
    found = {name.removeprefix(SCORE): bounds for name, bounds in where.items() if name.startswith(SCORE)}
    return {name: _range(name, bounds) for name, bounds in found.items()}


def of_items(where: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions on items alone."""
    return {name: condition for name, condition in where.items() if not name.startswith(SCORE)}


def _range(name: str, bounds: Any) -> Range:
    pair = bounds if isinstance(bounds, list | tuple) and len(bounds) == 2 else [""]
    if not all(bound is None or (isinstance(bound, int | float) and not isinstance(bound, bool)) for bound in pair):
        raise ValueError(
            f"where: {SCORE}{name}: {bounds!r}; allowed: the lowest and highest value, such as [0.6, null]"
        )
    low, high = pair
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def matching(items: pa.Table, where: Mapping[str, Any], *, known: bool = True) -> NDArray[np.bool_]:
    """The rows that meet every condition. A value that an item lacks meets none.

    Args:
        where: a column of the items table, or a dotted place in its `meta`, to a value it must equal, a list of
            such values, or a mapping of operators: `==, !=, <, <=, >, >=, in`.
        known: refuse a place that no item has; otherwise no item meets the condition.

    Raises:
        GraphError: no item has such a column or place, an unknown operator, or values that cannot be compared.
    """
    met = np.ones(len(items), bool)
    for name, condition in where.items():
        plain = "in" if isinstance(condition, list | tuple) else "=="
        tests = condition if isinstance(condition, Mapping) else {plain: condition}
        if not tests:
            raise GraphError(f"where: {name}: no operator; allowed: {', '.join(OPERATORS)}")
        if isinstance(tests.get("in", []), str):
            raise GraphError(f"where: {name}: in: {tests['in']!r}; allowed: a list")
        if unknown := [test for test in tests if test not in OPERATORS]:
            raise GraphError(f"where: {name}: unknown operator {unknown[0]!r}; allowed: {', '.join(OPERATORS)}")
        values = _values(items, name, known=known)
        for test, wanted in tests.items():
            met &= np.array([_holds(name, test, value, wanted) for value in values], bool)
    return met


def _holds(name: str, test: str, value: Any, wanted: Any) -> bool:
    try:
        return value is not None and bool(OPERATORS[test](value, wanted))
    except TypeError as error:
        raise GraphError(f"where: {name} {test} {wanted!r}: an item has {value!r}, which cannot be compared") from error


def _values(items: pa.Table, name: str, *, known: bool) -> list[Any]:
    if name != "meta" and name in items.column_names:
        return list(items.column(name).to_pylist())
    documents = [json.loads(text) if text else {} for text in items.column("meta").to_pylist()]
    values = [_at(document, name.split(".")) for document in documents]
    if known and items.num_rows and all(value is None for value in values):
        places = sorted({key for document in documents if isinstance(document, dict) for key in document})
        columns = [column for column in items.column_names if column != "meta"]
        told = f"columns: {', '.join(columns)}; in meta: {', '.join(places) or 'nothing'}"
        raise GraphError(f"where: no item has {name!r}{suggestion(name, [*columns, *places])}; {told}")
    return values


def _at(document: Any, place: list[str]) -> Any:
    for key in place:
        document = document.get(key) if isinstance(document, dict) else None
    return document
