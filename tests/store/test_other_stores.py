"""Graphs in servers that check who asks, as processes of their own: Swift for S3, Azurite for Azure."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from graphbuild.engine.gc import gc
from graphbuild.errors import GraphError, Unreachable
from graphbuild.sources import resolve
from graphbuild.store import workspace
from graphbuild.store.exclusions import chosen, exclude
from graphbuild.store.files import AlreadyPublished
from graphbuild.store.graph import Graph
from graphbuild.store.locations import files_at
from graphbuild.store.objects import ObjectFiles
from graphbuild.store.repair import repair
from graphbuild.store.verify import verify
from graphbuild.store.workspace import Workspace
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete, start, write_photos
from tests.support.object_store import local_content
from tests.support.stores import SERVERS, Store
from tests.support.training import Ground, grounded, recorded

DENIED = r"access denied \(403 {}\); the credentials are wrong, have expired .*{}"
AZURE = DENIED.format("AuthorizationFailure", "AZURE_STORAGE_ACCOUNT_KEY")
REFUSED = {
    ("s3", "stranger"): DENIED.format("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
    ("s3", "late"): "clocks here and of the store differ",
    ("az", "stranger"): AZURE,
    ("az", "late"): AZURE,
}


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("eight") / "photos", range(8))


@pytest.fixture(scope="module")
def ground(eight: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The local graph of these photographs, and what is trained on it."""
    with grounded(tmp_path_factory.mktemp("ground"), eight) as made:
        yield made


@pytest.fixture(scope="module")
def local(ground: Ground) -> dict[str, bytes]:
    """What is in that graph before anything is trained on it."""
    return local_content(ground.graph)


@pytest.fixture(scope="module")
def plain(ground: Ground, local: object) -> list[float]:
    """The losses of five steps on the local graph."""
    return recorded(ground.trained("plain").out, "loss")


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    allow(monkeypatch, server.environment)
    return server


def allow(patch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Have these credentials and no others."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_"))]:
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)


def test_a_killed_build_is_continued(
    store: Store,
    eight: Path,
    local: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Guards against requests that only a lenient server takes, against other bytes than on a disk, a workspace of the
    dead that stays, and secrets in the graph or in what is printed."""
    url = store.new_url()
    process = start(eight, url, ["canny"], shard_size=4, environment=dict(store.environment))
    while not store.names(url, "nodes") and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -9 and not local.keys() <= store.content(url).keys()
    monkeypatch.setattr(workspace, "STALE_SECONDS", 0.0)
    complete(build(eight, url, ["canny"], shard_size=4))
    found = store.content(url)
    assert {name: data for name, data in found.items() if not name.startswith("runs/")} == local
    assert verify(url, "full").problems == []
    written = b"".join(found.values()) + "".join(capfd.readouterr()).encode()
    assert not any(secret.encode() in written for secret in store.secrets)


def test_a_graph_there_is_sampled_and_trained_on(
    store: Store, ground: Ground, plain: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against ranges, listings or tails of files that only moto answers so, in walks, SQL and five steps."""
    url, local = store.upload(ground.graph), Graph.open(ground.graph)
    remote = Graph.open(url)
    paths = PathSet(name="one", paths=(TaskPath(name="draw", cells=("canny", "image"), targets=(1,)),))
    one, other = (PathSampler(graph, paths).task(3, resolution=64).cells(filled=True) for graph in (local, remote))
    assert all(np.array_equal(*rows) for rows in zip(one, other, strict=True))
    count = "select kind, count(*), sum(octet_length(image.bytes)) from nodes group by kind order by kind"
    assert remote.sql(count).fetchall() == local.sql(count).fetchall()
    monkeypatch.setattr(ground, "graph", url)
    losses = recorded(ground.trained(f"from-{store.scheme}").out, "loss")
    assert losses == plain and len(losses) == 5


@pytest.mark.slow
def test_damage_is_found_and_mended_and_waste_goes(store: Store, eight: Path, ground: Ground, tmp_path: Path) -> None:
    """Guards against objects that stay after a takedown, or that cannot be withdrawn and made again."""
    url, graph = store.upload(ground.graph), Path(shutil.copytree(ground.graph, tmp_path / "g"))
    part = next(name for name in store.names(url, "nodes") if "kind=canny" in name)
    store.put(url, part, b"x" * len(local_content(graph)[part]))
    assert part in verify(url, "full").damaged and part in repair(url).withdrawn
    complete(build(eight, url, ["canny"], shard_size=4))
    assert store.content(url)[part] == local_content(graph)[part]
    for where in (url, str(graph)):
        exclude(files_at(where), chosen(Graph.open(where).items(), [2]), "takedown")
        assert sorted(line.kind for line in gc(where, delete=True).waste if line.count) == ["canny", "image"]
    assert verify(url, "full").problems == []
    folders = ("nodes/", "edges/")
    remote, local = (
        {n: d for n, d in c.items() if n.startswith(folders)} for c in (store.content(url), local_content(graph))
    )
    assert remote == local


def test_photographs_there_have_any_names(store: Store, eight: Path, tmp_path: Path) -> None:
    """Guards against a signature over another spelling of a name than the server's."""
    photos = Path(shutil.copytree(eight, tmp_path / "photos"))
    (photos / "deep/er").mkdir(parents=True)
    shutil.move(photos / "p02.jpg", photos / "deep/er/p 02+ü,=&%25.jpg")
    local, remote = resolve("folder", path=str(photos)), resolve("folder", path=store.upload(photos))
    keys = [entry.key for entry in local.listing().entries]
    assert [entry.key for entry in remote.listing().entries] == keys
    assert list(remote.read(keys)) == list(local.read(keys))


def test_nothing_is_overwritten(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against two runs that take each other's names, against a put that is too large for a server, and access
    that is lent and does not suffice."""
    allow(monkeypatch, store.lent)
    files = ObjectFiles(store.new_url())
    space = Workspace.create(files, "run")
    large = os.urandom(1 << 20) * 20
    for name, first in (("a/b", b"first"), ("large", large)):
        published = []
        for data in (first, first, b"second"):
            Path(temp := space.temp()).write_bytes(data)
            with nullcontext() if data == first else pytest.raises(AlreadyPublished, match=f"^{files.url}/{name}"):
                published.append(files.publish_file(temp, name))
        assert published == [True, False] and files.read(name) == first
    files.replace("a/b", b"third", space)
    assert files.read("a/b") == b"third" and files.tail("a/b", 3) == b"ird" and files.age("a") is not None
    space.close()


@pytest.mark.parametrize("access", ["stranger", "late"])
def test_who_is_refused_is_told_why(
    store: Store, access: str, eight: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Guards against endless retries, against a graph that seems not to exist where access is refused, and against
    secrets in errors."""
    store.put(url := store.new_url(), "graph.json", b"{}")
    allow(monkeypatch, getattr(store, access))
    calls: list[Callable[[], object]] = [
        lambda: Graph.open(url),
        lambda: verify(url, "full"),
        lambda: build(eight, url, ["canny"]),
        lambda: resolve("folder", path=url).listing(),
    ]
    for call in calls:
        with pytest.raises(Unreachable, match=REFUSED[store.scheme, access]) as caught:
            call()
        assert not any(secret in f"{caught.value}{capfd.readouterr()}" for secret in store.secrets)


def test_a_bucket_that_is_not_there(store: Store, eight: Path) -> None:
    """Guards against an empty graph, and advice about credentials, where a URL is mistyped."""
    url = f"{store.scheme}://another-bucket/g"
    calls: list[Callable[[], object]] = [lambda: Graph.open(url), lambda: build(eight, url, ["canny"])]
    for call in calls:
        with pytest.raises(GraphError, match="no such bucket"):
            call()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "Account must be specified.*AZURE_STORAGE_ACCOUNT_NAME"),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "s3cret!"}, "Invalid Access Key"),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_SAS_KEY": "s3cret"}, "SAS.*AZURE_STORAGE_SAS_KEY"),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ENDPOINT": "127.0.0.1:1"}, "AZURE_STORAGE_ENDPOINT must"),
    ],
)
def test_what_cannot_be_asked_at_all(variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a message about the network where a variable is wrong, and against obstore's panic."""
    allow(monkeypatch, variables)
    with pytest.raises(GraphError, match=says) as caught:
        Graph.open("az://container/g")
    assert "s3cret" not in str(caught.value)
