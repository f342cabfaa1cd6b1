"""A run's progress for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graphbuild.engine.progress import Progress
from graphbuild.errors import GraphError

if TYPE_CHECKING:
    from prometheus_client import Metric

HOST = "127.0.0.1"
"""Loopback: what serves it to others, and to whom, is not ours to decide."""


@contextmanager
def served(port: int | None, progress: Callable[[], Progress | None]) -> Iterator[int | None]:
    """`http://127.0.0.1:<port>/metrics` while the block runs; nothing without a port. Gives the port; 0 is a free one.

    Raises:
        GraphError: prometheus-client is not installed, or the port is taken.
    """
    if port is None:
        yield None
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError:
        raise GraphError("--metrics-port needs prometheus-client: pip install 'graphbuild[metrics]'") from None

    registry = CollectorRegistry()
    registry.register(_Rows(progress))
    try:
        server, thread = start_http_server(port, addr=HOST, registry=registry)
    except OSError as error:
        raise GraphError(f"--metrics-port {port}: {error.strerror}; give another port") from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Rows:
    """Read when it is asked for, so that counting costs nothing."""

    def __init__(self, progress: Callable[[], Progress | None]) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily

        rows = GaugeMetricFamily("graphbuild_rows", "Rows of this run.", labels=["annotator", "state"])
        left = GaugeMetricFamily("graphbuild_seconds_left", "At the rate so far.", labels=["annotator"])
        stored = GaugeMetricFamily("graphbuild_bytes", "Parts of the units of this run.", labels=["annotator"])
        gpus = GaugeMetricFamily("graphbuild_gpu", "Memory in bytes; busy: 0 to 1.", labels=["gpu", "what"])
        progress = self._progress()
        for name, counted in progress.rows.items() if progress is not None else ():
            for state in ("total", "done", "computed", "failed"):
                rows.add_metric([name, state], getattr(counted, state))
            if (seconds := counted.left(time.monotonic())) is not None:
                left.add_metric([name], seconds)
            stored.add_metric([name], counted.nbytes)
        for name, use in progress.gpu_use().items() if progress is not None else ():
            for what, value in use._asdict().items():
                if value is not None:
                    gpus.add_metric([name, what], value)
        yield from (rows, left, stored, gpus)
