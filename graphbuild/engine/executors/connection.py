"""Connecting to a Ray cluster, with own code that its nodes lack, and asking its autoscaler for nodes."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from graphbuild.errors import GraphError

MOST_BUNDLES = 256
"""At most so many actors are asked for at once."""

ANSWER_SECONDS = 10.0
"""For the head of a cluster to take a connection."""

MOST_CODE = 50_000_000
"""Bytes of a module or package of one's own that travel to other machines."""


@contextmanager
def connected(address: str | None, own: Sequence[type]) -> Iterator[None]:
    """A connection to a cluster, or to Ray on this machine, until the end of the block.

    Args:
        own: classes of annotators and sources; the modules of those that are not installed travel to other machines.
    """
    if ray.is_initialized():
        yield
        return
    # Ray announces at length that this default will change; it is set to what it will be.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    refuse_dead(os.environ.get("RAY_ADDRESS", where) if where == "auto" else where)
    try:
        _connect(where)
        if (code := own_code(own)) and where != "local" and _has_other_machines():
            ray.shutdown()
            with TemporaryDirectory(prefix="graphbuild-code-") as folder:
                _connect(where, runtime_env={"py_modules": packed(code, Path(folder))})
        yield
    finally:
        ray.shutdown()


def refuse_dead(where: str) -> None:
    """Refuse the address of a cluster that is not there; Ray itself asks for ever.

    Raises:
        GraphError: nothing answers at a host and port.
    """
    host, _, port = where.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise GraphError(
            f"--address {where}: no Ray cluster answers there ({error.strerror or error}); start one with ray start "
            "--head, or give the address that it printed"
        ) from None


def _connect(where: str, **options: Any) -> None:
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=where, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, **options)
    except SystemExit:  # Ray's handler of SIGTERM, while it starts
        if callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end this process with SIGABRT


def _has_other_machines() -> bool:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return any(node["Alive"] and node["NodeManagerHostname"] != socket.gethostname() for node in nodes)


def own_code(classes: Sequence[type]) -> list[str]:
    """Files and package folders of these classes that no installation brought, with the modules beside them that are
    imported as well: what a node without the user's folder lacks."""
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    places = {name: place for name in list(sys.modules) if "." not in name and (place := _place(name)) is not None}
    own = {cls.__module__.partition(".")[0] for cls in classes} - {"graphbuild", "__main__"}
    own = {name for name in own if name in places and not any(places[name].is_relative_to(f) for f in installed)}
    folders = {places[name].parent for name in own}
    return sorted(str(place) for place in places.values() if place.parent in folders)


def packed(places: Sequence[str], folder: Path) -> list[str]:
    """Copies of modules and packages in `folder`: their Python files, and the files of data that the `pyproject.toml`
    beside a package declares in `[tool.setuptools.package-data]`. Whatever else lies among them stays here.

    Raises:
        GraphError: one has more than MOST_CODE bytes.
    """
    for place in map(Path, places):
        files = [place] if place.is_file() else sorted({*place.rglob("*.py"), *_declared(place)})
        nbytes = sum(file.stat().st_size for file in files)
        if nbytes > MOST_CODE:
            raise GraphError(
                f"{place}: its code and declared data are {nbytes / 1e6:.0f} MB; at most {MOST_CODE / 1e6:.0f} travel "
                "to other machines; install the package on every node, or keep its data in a folder that all see"
            )
        for file in files:
            (copy := folder / file.relative_to(place.parent)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    return [str(folder / Path(place).name) for place in places]


def _declared(package: Path) -> Iterator[Path]:
    """The data of a package that belongs to it, as setuptools is told."""
    project = package.parent / "pyproject.toml"
    said = tomllib.loads(project.read_text(encoding="utf-8")) if project.is_file() else {}
    for name, patterns in said.get("tool", {}).get("setuptools", {}).get("package-data", {}).items():
        top, _, below = (package.name if name == "*" else name).partition(".")
        if top == package.name:
            found = (file for pattern in patterns for file in (package / below.replace(".", "/")).glob(pattern))
            yield from (file for file in found if file.is_file())


def _place(name: str) -> Path | None:
    """The file of a module, or the folder of a package."""
    file = getattr(sys.modules[name], "__file__", None)
    if not file or not file.endswith(".py"):
        return None
    path = Path(file).resolve()
    return path.parent if path.name == "__init__.py" else path


class Wish:
    """What an autoscaler, if the cluster has one, is asked to make room for."""

    def __init__(self) -> None:
        self._asked: list[dict[str, float]] = []

    def ask(self, actors: Sequence[dict[str, float]]) -> None:
        """For actors with these resources, those that run included; each request replaces the last."""
        wanted = [{name: amount for name, amount in each.items() if amount} for each in actors[:MOST_BUNDLES]]
        if wanted != self._asked:
            request_resources(bundles=[bundle for bundle in wanted if bundle])
            self._asked = wanted

    def withdraw(self) -> None:
        self.ask([])
