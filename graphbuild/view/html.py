"""Templates: every value is text, whatever it holds."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import filesize

from graphbuild.tasks.sheet import visible

LONGEST = 2000
"""Letters of a text that are shown."""


@cache
def environment() -> Environment:
    """The templates of this package. Markup in a value is escaped; control characters, marks of direction and line
    breaks are shown as escapes; long texts are cut."""
    found = Environment(
        loader=PackageLoader("graphbuild.view"), autoescape=True, undefined=StrictUndefined, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {
        "size": filesize.decimal,
        "thousands": _thousands,
        "brief": brief,
        "share": _share,
        "duration": _duration,
    }
    return found


def render(template: str, /, **values: Any) -> str:
    """A page."""
    return environment().get_template(template).render(**values)


def brief(text: object, most: int = 80) -> str:
    """The beginning of a text on one line."""
    found = visible(" ".join(str(text).split(" ")))
    return found if len(found) <= most else f"{found[: most - 1]}…"


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return brief(value, LONGEST) if isinstance(value, str) and not isinstance(value, Markup) else value


def _thousands(number: int) -> str:
    return f"{number:,}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "0 %"


def _duration(seconds: float) -> str:
    factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if seconds * f >= 1), (1e6, "µs"))
    return f"{seconds * factor:.3g} {unit}"
