"""Graphs in an object store: a real server process's protocol, and what goes wrong on the way to it."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphbuild.engine.gc import gc
from graphbuild.errors import GraphError, Unreachable
from graphbuild.store import objects, workspace
from graphbuild.store.blocks import AHEAD_BYTES, BLOCK_BYTES, Blocks
from graphbuild.store.exclusions import chosen, exclude
from graphbuild.store.files import AlreadyPublished
from graphbuild.store.graph import Graph
from graphbuild.store.heads import read_head
from graphbuild.store.locations import files_at
from graphbuild.store.objects import ObjectFiles
from graphbuild.store.promote import promote
from graphbuild.store.repair import repair
from graphbuild.store.status import status_of
from graphbuild.store.verify import verify
from graphbuild.store.workspace import Workspace, remove_dead_workspaces
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete
from tests.support.disks import mounted
from tests.support.object_store import SECRET, ObjectStore, local_content

ANNOTATORS = ["canny", "source_caption"]


def built(sound: Path, url: str) -> None:
    """The graph `sound` once more, at a URL."""
    complete(build(sound.parent / "photos", url, ANNOTATORS, shard_size=4))  # type: ignore[arg-type]


def same(store: ObjectStore, url: str, sound: Path) -> bool:
    """Whether every object is the file of the local graph, and nothing is left of work under way."""
    found = {name: data for name, data in store.content(url).items() if not name.startswith("runs/")}
    return found == local_content(sound)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience that a test has."""
    monkeypatch.setattr(objects, "RETRY_SECONDS", 3)
    monkeypatch.setattr(objects, "REQUEST_SECONDS", 1)


@pytest.fixture
def files(s3: ObjectStore) -> ObjectFiles:
    return ObjectFiles(s3.new_url())


@pytest.fixture
def space(files: ObjectFiles) -> Workspace:
    return Workspace.create(files, "run")


# ---- a graph ----------------------------------------------------------------------------------------------------


def test_a_graph_built_under_faults_is_the_local_one(
    s3: ObjectStore, sound: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Guards against other bytes than on a disk, against requests that fail and are not repeated, and against
    credentials in lineage, cards, events, reports or what is printed."""
    url, faults = s3.new_url(), ["500 InternalError", "503 SlowDown", "429 TooManyRequests", "cut", "lost", "torn"]

    def sometimes(environ: dict[str, Any]) -> str:
        if len(s3.requests) in (60, 90):
            return "slow"
        return faults[len(s3.requests) // 9 % 6] if len(s3.requests) % 9 == 0 else ""

    with s3.failing(sometimes):
        built(sound, url)
    assert len(s3.requests) > 9 * 6 * 2 and same(s3, url, sound)
    assert verify(url, "full").problems == []
    requests = len(s3.requests)
    built(sound, url)
    assert same(s3, url, sound) and len(s3.requests) - requests < 150
    with s3.failing(lambda _: "403 AccessDenied"), suppress(Unreachable):
        built(sound, url)
    written = b"".join(s3.content(url).values()) + "".join(capfd.readouterr()).encode()
    assert SECRET.encode() not in written and b"AKIATESTS" not in written


def test_a_graph_in_a_store_is_used_like_a_local_one(s3: ObjectStore, sound: Path, graph: Path) -> None:
    """Guards against status, nodes, walks, exclusions or promotion that work on a disk only."""
    url = s3.upload(sound)
    local, remote = Graph.open(graph), Graph.open(url)
    assert status_of(remote).kinds == status_of(local).kinds and remote.digest == local.digest
    assert remote.files("canny")[0].startswith(f"{url}/nodes/kind=canny/")
    count = "select kind, count(*), sum(octet_length(image.bytes)) from nodes group by kind order by kind"
    assert remote.sql(count).fetchall() == local.sql(count).fetchall()
    samplers = [PathSampler(one, _paths(), on_missing="drop") for one in (local, pickle.loads(pickle.dumps(remote)))]
    for index in range(3):
        one, other = (sampler.task(index, resolution=64).cells(filled=True) for sampler in samplers)
        assert all(np.array_equal(*rows) for rows in zip(one, other, strict=True))
    version = remote.live("canny").version
    number = read_head(remote.fs)[0]
    promote(url, version)
    exclude(remote.fs, chosen(remote.items(), [2]), "blurred")
    assert read_head(remote.fs)[0] == number and Graph.open(url).excluded_items == {2: "blurred"}


def test_gc_in_a_store_leaves_what_it_leaves_on_a_disk(s3: ObjectStore, sound: Path, graph: Path) -> None:
    """Guards against objects of a takedown that stay, and against a graph that is damaged by their removal."""
    url = s3.upload(sound)
    for where in (url, str(graph)):
        exclude(files_at(where), chosen(Graph.open(where).items(), [2]), "takedown")
        found = gc(where, delete=True)
        assert sorted(line.kind for line in found.waste if line.count) == ["canny", "image"]
        assert gc(where).waste == [] and verify(where, "full").problems == []
    kept = ("nodes/", "edges/", "snapshots/")
    remote, local = (
        {n: d for n, d in c.items() if n.startswith(kept)} for c in (s3.content(url), local_content(graph))
    )
    assert remote == local


def _paths() -> Any:
    from graphbuild.tasks.paths import PathSet, TaskPath

    path = TaskPath(name="draw", cells=("canny", "image"), targets=(1,))
    return PathSet(name="one", paths=(path,))


@pytest.mark.parametrize("puts", [6, 15])
def test_a_killed_run_is_continued(s3: ObjectStore, sound: Path, puts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a half-published unit, and against a workspace of the dead that stays or that hinders."""
    url = s3.new_url()
    with monkeypatch.context() as killed:
        _kill_after(killed, puts)
        with pytest.raises(KeyboardInterrupt):
            built(sound, url)
    assert verify(url, "quick").problems == [] if "heads/00000001.json" in s3.content(url) else True
    built(sound, url)
    assert [name for name in s3.content(url) if name.startswith("_tmp/")] != []  # it may be at work elsewhere
    monkeypatch.setattr(workspace, "STALE_SECONDS", 0.0)
    built(sound, url)
    assert same(s3, url, sound)


def _kill_after(patch: pytest.MonkeyPatch, puts: int) -> None:
    """Let a process end with its n-th put, as far as the store can tell."""
    put, done = ObjectFiles._put, []

    def counted(files: ObjectFiles, name: str, data: Any, mode: str) -> None:
        done.append(name)
        if len(done) > puts:
            raise KeyboardInterrupt
        put(files, name, data, mode)

    patch.setattr(ObjectFiles, "_put", counted)
    patch.setattr(Workspace, "close", lambda _: None)


def test_credentials_that_expire(s3: ObjectStore, sound: Path) -> None:
    """Guards against rows that fail with the credentials, half a unit, and a graph that new ones do not continue."""
    url = s3.new_url()
    with s3.failing(lambda _: "400 ExpiredToken" if len(s3.requests) > 60 else ""):
        with pytest.raises(Unreachable, match=r"expired.*renew") as caught:
            built(sound, url)
        assert str(caught.value).startswith(url)
    assert any(name.startswith("nodes/") for name in s3.content(url)) and verify(url, "full").problems == []
    built(sound, url)
    assert {n: d for n, d in s3.content(url).items() if not n.startswith(("runs/", "_"))} == local_content(sound)


def test_a_full_folder_for_temporary_files(
    s3: ObjectStore, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against an error that does not say that it is `TMPDIR` which is full, and against half a part."""
    url = s3.new_url()
    monkeypatch.setattr(objects, "gettempdir", lambda: str(tmp_path / "tmp"))
    with mounted(tmp_path / "tmp", "-t", "tmpfs", "-o", "size=40k", "tmpfs") as disk:
        objects._staging.cache_clear()
        try:
            report = build(sound.parent / "photos", url, ANNOTATORS, shard_size=4)
            assert report.units_left and f"No space left on device: '{disk}/" in report.errors[0]
            assert not any(name.startswith("nodes/kind=image") for name in s3.content(url))
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            built(sound, url)
        finally:
            objects._staging().close()
            objects._staging.cache_clear()
    kept = ("nodes/", "edges/", "items/", "heads/")
    remote, local = (
        {n: d for n, d in c.items() if n.startswith(kept)} for c in (s3.content(url), local_content(sound))
    )
    assert remote == local


def test_two_runs_at_once(s3: ObjectStore, sound: Path) -> None:
    """Guards against runs that overwrite, or wait for, each other."""
    url = s3.new_url()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: built(sound, url), range(2)))
    assert same(s3, url, sound) and verify(url, "full").problems == []


def test_repair(s3: ObjectStore, sound: Path) -> None:
    """Guards against damage in a store that verify does not see, and against an outage that it takes for damage."""
    url = s3.upload(sound)
    part = next(name for name in s3.content(url) if name.startswith("nodes/kind=canny/"))
    s3.put(f"{url}/{part}", b"x" * len(s3.content(url)[part]))
    with s3.failing(lambda _: "400 ExpiredToken"), pytest.raises(Unreachable, match="expired"):
        verify(url, "full")
    assert part in verify(url, "full").damaged
    assert part in repair(url).withdrawn
    built(sound, url)
    assert verify(url, "full").problems == [] and s3.content(url)[part] == local_content(sound)[part]


# ---- publishing -------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(files: ObjectFiles, space: Workspace) -> None:
    """Guards against two runs that take each other's names."""
    assert files.publish("a/b", b"first", space) is True
    assert files.publish("a/b", b"first", space) is False
    Path(temp := space.temp()).write_bytes(b"second")
    with pytest.raises(AlreadyPublished, match=f"^{files.url}/a/b"):
        files.publish_file(temp, "a/b")
    assert files.read("a/b") == b"first" and not os.path.exists(temp)


def test_a_store_that_overwrites_is_refused(s3: ObjectStore, sound: Path) -> None:
    """Guards against work on a store that ignores If-None-Match, where the second of two runs would win silently."""
    url = s3.new_url()
    with s3.failing(lambda _: "lenient"), pytest.raises(GraphError, match="If-None-Match"):
        built(sound, url)
    assert s3.content(url) == {}


def test_a_lost_answer_is_no_conflict(s3: ObjectStore, files: ObjectFiles, space: Workspace) -> None:
    """Guards against a put that arrived, whose answer did not, and that then meets itself."""
    answers = iter(["cut", "lost"])
    with s3.failing(lambda _: next(answers, "")):
        files.publish("heads/1.json", b"head", space)
    assert files.read("heads/1.json") == b"head"


def test_event_files_grow_by_objects(files: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against lost lines, and against a file that is written again as a whole for each."""
    monkeypatch.setattr(objects, "EVENT_BYTES", 8)
    for number in range(6):
        files.append("runs/1/events.jsonl", [f"line {number}"])
    assert files.names("runs/1") == ["events-00001.jsonl", "events-00002.jsonl", "events.jsonl"]
    assert files.read("runs/1/events.jsonl") == b"line 0\nline 1\n"


def test_workspaces_die_by_the_clock_of_the_store(
    files: ObjectFiles, space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against clean-up by the times of this machine, or of a run that is at work."""
    monkeypatch.setattr("time.time", lambda: 4e9)
    space.beat()
    assert remove_dead_workspaces(files) == [] and files.names("_tmp") == [space.name]
    monkeypatch.setattr(workspace, "STALE_SECONDS", 0.0)
    assert remove_dead_workspaces(files) == [space.name] and files.names(".") == []


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("403 AccessDenied", "access denied.*AWS_ACCESS_KEY_ID"),
        ("403 InvalidAccessKeyId", "access denied.*InvalidAccessKeyId"),
        ("400 ExpiredToken", "expired.*renew"),
        ("404 NoSuchBucket", "no such bucket"),
        ("503 SlowDown", "503 SlowDown.*too busy"),
        ("slow", "does not answer.*network"),
        ("lost", "does not answer.*endpoint"),
    ],
)
def test_errors_name_url_and_fix(
    s3: ObjectStore, space: Workspace, answer: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against endless retries, against the library's pages of text, and against what they may hold."""
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(objects, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(objects, "UPLOAD_SECONDS", 0.3)
    files = ObjectFiles(space.files.url)
    calls: list[Callable[[], object]] = [lambda: files.read("graph.json"), lambda: files.publish("a", b"a", space)]
    for call in calls:
        with s3.failing(lambda _: answer), pytest.raises((Unreachable, GraphError), match=f"(?s){says}") as caught:
            call()
        assert str(caught.value).startswith(files.url) and SECRET not in str(caught.value)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert not files.exists("a")


def test_without_credentials_it_says_so(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against minutes of asking a metadata service that is not there."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(Unreachable, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        Graph.open(s3.new_url())


def test_a_forked_process_is_refused(files: ObjectFiles, space: Workspace) -> None:
    """Guards against a DataLoader worker that waits for ever for threads that it did not inherit."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            files.names(".")
        except GraphError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"spawn" in os.read(read, 1000)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a\0b"])
def test_no_name_leads_out(name: str) -> None:
    """Guards against a name in somebody's commit that reads or writes another graph of the bucket."""
    with pytest.raises(GraphError, match="leads out"):
        ObjectFiles("s3://b/g").read(name)


# ---- blocks -----------------------------------------------------------------------------------------------------


class _Remote:
    """Ten megabytes that say where they are, and what was asked of them."""

    def __init__(self, most_bytes: int) -> None:
        self.data = np.arange(10 << 18, dtype="<u4").tobytes()
        self.asked: list[int] = []
        self.blocks = Blocks(self._fetch, most_bytes)

    def _fetch(self, name: str, offset: int, nbytes: int) -> bytes:
        self.asked.append(nbytes)
        return self.data[offset : offset + nbytes]


def test_blocks_give_the_bytes_of_the_file() -> None:
    """Guards against a value that is cut at the edge of a block, or a cache without bounds."""
    remote, rng = _Remote(most_bytes := 1 << 20), np.random.default_rng(0)
    for start, nbytes in zip(rng.integers(0, 10 << 20, 400), rng.integers(1, 300_000, 400), strict=True):
        assert remote.blocks.read("a", start, nbytes) == remote.data[start : start + nbytes]
    assert len(remote.blocks._blocks) * BLOCK_BYTES <= most_bytes
    assert sum(remote.asked) < 400 * (150_000 + 2 * BLOCK_BYTES)


def test_reading_in_order_takes_few_requests() -> None:
    """Guards against one request a node where a whole part is read, as verify and annotators do."""
    remote = _Remote(64 << 20)
    for start in range(0, 10 << 20, 40_000):
        remote.blocks.read("a", start, 40_000)
    assert len(remote.asked) < 12 and max(remote.asked) <= AHEAD_BYTES + 2 * BLOCK_BYTES


def test_announced_reads_cost_no_request_each() -> None:
    """Guards against a batch whose cells are fetched one after the other."""
    remote = _Remote(64 << 20)
    spans = [("a", 7_000_000, 1000), ("a", 100, 1000), ("a", 200_000, 1000), ("b", 3_000_000, 1000)]
    remote.blocks.load(spans)
    assert sorted(remote.asked) == [BLOCK_BYTES, BLOCK_BYTES, 2 * BLOCK_BYTES]
    assert all(remote.blocks.read(*span) == remote.data[span[1] :][:1000] for span in spans)
    assert len(remote.asked) == 3
