"""Where test data, photos, Ray and caches come from: one place."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.object_store import ObjectStore

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GRAPHBUILD_TEST_DATA") or ROOT.parent / "shared" / "data")
"""Real photographs and reference outputs; tests that need them skip without."""

settings.register_profile("any machine", deadline=None)  # no test measures time
settings.load_profile("any machine")

# A shell that starts the tests in the background has Ctrl-C ignored, and `nohup` the end of a terminal, by them and by
# every process they start.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

_SESSION = Path(tempfile.mkdtemp(prefix="graphbuild-tests-"))
# Set before anything is imported or started, so that Ray workers and subprocesses see the same.
_PATHS = [str(ROOT), str(ROOT / "train"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
os.environ |= {
    "GRAPHBUILD_CACHE": str(_SESSION / "cache"),
    "GRAPHBUILD_TEST_CONTROL": str(_SESSION / "control"),
    "HF_HOME": str(_SESSION / "huggingface"),
    "HF_HUB_OFFLINE": "1",
    # Tests run side by side, one a core: more threads wait for one another, twenty times as long in small matrices.
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "PYTHONPATH": os.pathsep.join(dict.fromkeys(_PATHS)),
    "RAY_AUTH_MODE": "disabled",
    "TORCHINDUCTOR_CACHE_DIR": str(_SESSION / "inductor"),  # else other kernels find code compiled for these
}
sys.path[:0] = [path for path in _PATHS[:2] if path not in sys.path]
(_SESSION / "control").mkdir()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_SESSION, ignore_errors=True)


@pytest.fixture(scope="session")
def data_folder() -> Callable[[str], Path]:
    """Folder `name` of the test data; the test skips if it is not there."""

    def folder(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"no test data: {DATA / name} is not a folder; set GRAPHBUILD_TEST_DATA")
        return DATA / name

    return folder


@pytest.fixture(scope="session")
def spec_file() -> Callable[[str], Path]:
    """File `name` of the facts beside the test data; the test skips if it is not there."""

    def file(name: str) -> Path:
        path = DATA.parent / "spec" / name
        if not path.is_file():
            pytest.skip(f"no {name} beside the test data {DATA}; set GRAPHBUILD_TEST_DATA")
        return path

    return file


@pytest.fixture(scope="session")
def photos() -> Path:
    """18 small real photographs, read only: crops of what scikit-image carries, JPEG and PNG."""
    from tests.support.annotators import write_photos

    return write_photos(_SESSION / "photos", range(18))


@pytest.fixture
def own_photos(tmp_path: Path, photos: Path) -> Path:
    """A copy of `photos` that a test may change."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    """The one object store of the session."""
    from tests.support.object_store import ObjectStore

    store = ObjectStore()
    yield store
    store.close()


@pytest.fixture
def s3(s3_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """That store, with credentials for it in the environment; it fails only where a test says so."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.requests.clear()
    return s3_server


@pytest.fixture(scope="session")
def ray_address(s3_server: ObjectStore) -> Iterator[str]:
    """The one Ray instance of the session, with two CPUs, whose nodes have credentials for the object store."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        ray.init(
            address="local",  # never somebody else's instance on this machine
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 << 20,
        )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """A folder for a Ray that a test starts: sockets need a short path, and other instances have their own."""
    folder = tempfile.mkdtemp(prefix="gb")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of every stored picture that was decoded in this process."""
    from graphbuild.images.node import Node

    seen: list[str] = []
    decoded = Node.decoded

    def counted(node: Node, *arguments: Any, **options: Any) -> Any:
        seen.append(node.kind)
        return decoded(node, *arguments, **options)

    monkeypatch.setattr(Node, "decoded", counted)
    return seen


@pytest.fixture
def control(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Tell test annotators what to do: `control(**{key: "fail" | "skip" | "kill"})` returns their tag, the same for
    the whole test, and replaces what was said before. `order(orders, "-annotator")` speaks to annotators alone."""
    tag = "".join(char if char.isalnum() else "_" for char in request.node.name)

    def order(orders: dict[str, str] | None = None, to: str = "") -> str:
        path = _SESSION / "control" / f"{tag}{to}.orders"
        path.write_text("".join(f"{what} {key}\n" for key, what in (orders or {}).items()))
        return tag

    return order
