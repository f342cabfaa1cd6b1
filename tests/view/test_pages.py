"""What the viewer answers, to whom, and from what: over HTTP, without a browser."""

from __future__ import annotations

import http.client
import io
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from graphbuild.annotators.lsd import Lsd
from graphbuild.contracts import GraphDocument, SourceDocument
from graphbuild.errors import GraphError
from graphbuild.store.graph import Graph
from graphbuild.store.status import status_of
from graphbuild.view.look import Look
from graphbuild.view.query import Query, find
from graphbuild.view.server import Viewer
from tests.support.annotators import Halves, Styles, TwoKinds, build
from tests.view.conftest import running

Answer = tuple[int, dict[str, str], bytes]


def ask(viewer: Viewer, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Answer:
    """Status, headers by lower-case name, and body."""
    connection = http.client.HTTPConnection(*viewer.socket.getsockname()[:2], timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, data


def test_counts_are_those_of_status(seen: Path) -> None:
    graph = Graph.open(seen / "graph")
    outcomes, status = Look(graph).outcomes, status_of(graph)
    assert outcomes.counts() == status.kinds
    assert outcomes.nbytes() == status.nbytes
    told = {
        kind: {each.reason: each.count for each in outcomes.reasons() if each.kind == kind} for kind in status.kinds
    }
    assert told["hed"] == {"error": 3} and told["image"] == {"undecodable": 1}


def test_a_kind_is_counted_by_the_annotator_that_serves_it(tmp_path: Path, photos: Path) -> None:
    """Guards against counts of both where one of an annotator's two kinds has been taken over by another."""
    build(photos, tmp_path / "graph", [TwoKinds()], limit=4)
    build(photos, tmp_path / "graph", [Halves()], limit=4)
    graph = Graph.open(tmp_path / "graph")
    assert (graph.head["canny"].annotator, graph.head["foreground_mask"].annotator) == ("two_kinds", "halves")
    assert Look(graph).outcomes.counts() == status_of(graph).kinds


def test_later_counts_take_over_what_was_read(seen: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAPHBUILD_CACHE", str(tmp_path))
    before = Look(Graph.open(seen / "graph"))
    assert before.outcomes.counts()
    after = Look(Graph.open(seen / "graph"))
    monkeypatch.setattr("graphbuild.view.outcomes.read_commits", None)
    assert after.outcomes.counts() == before.outcomes.counts()  # from the cache: no commit is opened


@pytest.mark.parametrize("limit", [1, 5, 100])
@pytest.mark.parametrize(
    "query", [{}, {"kind": "style_content"}, {"kind": "hed", "order": "-score"}, {"kind": "hed", "order": "score"}]
)
def test_pages_hold_every_node_once(seen: Path, query: dict[str, Any], limit: int) -> None:
    look, after, found = Look(Graph.open(seen / "graph")), "", []
    for _ in range(100):
        page = find(look, Query(**query), after, limit)
        found += [(hit.item_ix, hit.variant) for hit in page.hits]
        if not (after := page.after):
            break
    edges = look.graph.edges(query.get("kind", "image")).to_pylist()
    if "order" in query:
        edges = sorted((edge for edge in edges if edge["status"] == "ok"), key=lambda edge: edge["score"])
        edges = edges[::-1] if query["order"] == "-score" else edges
    assert found == [(edge["item_ix"], edge["variant"]) for edge in edges]


def test_filters(seen: Path) -> None:
    look = Look(Graph.open(seen / "graph"))

    def keys(**query: Any) -> list[str]:
        return [hit.facts["key"] for hit in find(look, Query(**query)).hits]

    assert keys(kind="hed", status="failed") == ["p02.jpg", "p03.png", "p08.jpg"]
    assert keys(kind="hed", reason="error", text="P03") == ["p03.png"]
    assert keys(reason="undecodable") == ["damaged.jpg"]
    assert keys(order="near")[:2] == ["<img src=x onerror=alert(1)>.jpg", "p00.jpg"]
    assert keys(order="near")[2:] == ["p04-again.jpg", "p04.jpg"]
    assert keys(text="photograph 7") == ["p07.png"]
    assert keys(kind="", annotator="fragile", status="failed") == ["p02.jpg", "p03.png", "p08.jpg"]
    assert keys(kind="", annotator="fragile", order="near")[2:] == ["p04-again.jpg", "p04.jpg"]
    assert keys(kind="canny", annotator="fragile") == []
    assert keys(kind="foreground") == keys(kind="foreground_mask", status="ok") != []
    low, high = (find(look, Query(kind="hed", order="score")).hits[at].score for at in (1, 2))
    for order in ("item", "score"):
        assert len(keys(kind="hed", low=low, high=high, order=order)) == 2
    with pytest.raises(GraphError, match="begin at the first page"):
        find(look, Query(), "1.x")
    with pytest.raises(GraphError, match="kind 'nose'; allowed: image, "):
        Query.of({"kind": "nose"}, look.kinds)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Six photographs in three shards: an annotator that makes two kinds, and one that runs on two kinds."""
    folder = tmp_path_factory.mktemp("made")
    build(photos, folder / "graph", [TwoKinds(), Styles(), "lsd", Lsd(of="style_content")], limit=6, shard_size=2)
    return folder / "graph"


def nodes(graph: Graph, *kinds: str, status: str = "") -> list[tuple[int, int, str]]:
    """item_ix, variant and kind of what edges say of some kinds."""
    edges = [edge for kind in kinds for edge in graph.edges(kind).to_pylist() if status in ("", edge["status"])]
    return sorted((edge["item_ix"], edge["variant"], edge["kind"]) for edge in edges)


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("annotator", "kinds"), [("two_kinds", ["canny", "foreground_mask"]), ("lsd", ["lines", "style_content.lines"])]
)
def test_pages_of_an_annotator_hold_each_of_its_nodes_once(
    made: Path, annotator: str, kinds: list[str], limit: int
) -> None:
    look = Look(Graph.open(made))
    for status in ("", "ok", "skipped"):
        found, after = list[Any](), ""
        while not found or after:
            page = find(look, Query(kind="", annotator=annotator, status=status), after, limit)
            found, after = [*found, *page.hits], page.after
        assert [(hit.item_ix, hit.variant, hit.kind) for hit in found] == nodes(look.graph, *kinds, status=status) != []


def test_nodes_of_an_annotator_in_the_order_of_their_scores(made: Path) -> None:
    look = Look(Graph.open(made))
    found, after = list[Any](), ""
    while not found or after:
        page = find(look, Query(kind="", annotator="two_kinds", order="-score"), after, 4)
        found, after = [*found, *page.hits], page.after
    wanted = nodes(look.graph, "canny", "foreground_mask", status="ok")
    assert sorted((hit.item_ix, hit.variant, hit.kind) for hit in found) == wanted


def test_a_page_of_an_annotator_reads_what_it_shows(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look, read = Look(Graph.open(made)), list[str]()
    rows = look.rows
    monkeypatch.setattr(look, "rows", lambda name, columns: [read.append(name), rows(name, columns)][1])
    find(look, Query(kind="", annotator="two_kinds"), limit=1)
    assert len(read) == 1  # one unit of three
    read.clear()
    assert find(look, Query(kind="", annotator="two_kinds", status="failed"), limit=1).hits == [] == read


def test_near_duplicates_while_a_kind_is_being_made(own_photos: Path, tmp_path: Path) -> None:
    """Guards against a page that is an error until the last unit is there."""
    shutil.copy(own_photos / "p00.jpg", own_photos / "zz.jpg")
    build(own_photos, tmp_path / "graph", ["canny"], shard_size=2)
    sorted((tmp_path / "graph" / "edges").rglob("*canny*/**/*.parquet"))[-1].unlink()
    look = Look(Graph.open(tmp_path / "graph"))
    hits = find(look, Query(kind="", annotator="canny", order="near")).hits
    assert [hit.facts["key"] for hit in hits] == ["p00.jpg"]


def test_a_link_to_an_annotator(viewer: Viewer, seen: Path) -> None:
    page = ask(viewer, "/?annotator=fragile&status=failed")[2].decode()
    assert page.count('<li class="card failed">') == 3 and "<option selected>fragile</option>" in page
    viewer.pages.looking.now().outcomes  # noqa: B018 - waits for the counts
    assert "fragile: 9 ok, 1 skipped, 3 failed" in ask(viewer, "/?annotator=fragile")[2].decode()
    page = ask(viewer, "/?annotator=fragile&kind=image")[2].decode()
    assert "No image is made by fragile." in page and 'href="/?annotator=fragile"' in page
    status, _, page_of_error = ask(viewer, "/?annotator=nose")
    assert status == 400 and b"annotator &#39;nose&#39;; allowed: canny, " in page_of_error
    look = viewer.pages.looking.now()
    for query in (Query(kind="", annotator="lsd"), Query(annotator="source:folder"), Query(kind="lines", status="ok")):
        given = dict(parse_qsl(query.address()))
        assert Query.of(given, look.kinds, look.annotators) == query


def test_a_picture_is_sent_once(viewer: Viewer, seen: Path) -> None:
    status, headers, data = ask(viewer, "/thumb/2/image/0?size=144")
    assert status == 200 and headers["content-type"] == "image/jpeg"
    shown = np.asarray(Image.open(io.BytesIO(data)))
    stored = Graph.open(seen / "graph").read(2, "image").array()
    assert max(shown.shape) == 144
    assert abs(shown.mean((0, 1)) - stored.mean((0, 1))).max() < 2
    assert ask(viewer, "/thumb/2/image/0?size=144", If_None_Match=headers["etag"])[::2] == (304, b"")
    assert ask(viewer, "/thumb/2/image/0?size=320", If_None_Match=headers["etag"])[0] == 200
    assert ask(viewer, "/thumb/2/frost/0")[0] == 200  # computed


def test_original_bytes(viewer: Viewer, seen: Path) -> None:
    graph = Graph.open(seen / "graph")
    for kind, media in (("image", "image/jpeg"), ("caption", "text/plain; charset=utf-8")):
        status, headers, data = ask(viewer, f"/bytes/0/{kind}/0")
        assert (status, headers["content-type"], data) == (200, media, graph.read(0, kind).bytes)
        assert headers["content-disposition"].startswith("attachment; ")


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/item/99", 404, "no item 99"),
        ("/thumb/1/image/0", 404, "failed (undecodable)"),
        ("/thumb/0/nose/0", 400, "has no kind"),
        ("/?kind=nose", 400, "allowed: image"),
        ("/?low=much", 400, "a score is a number"),
        ("/versions?kind=nose", 400, "allowed: "),
        ("/tasks?path=nothing", 400, "allowed: "),
        ("/tasks?index=-1", 400, "whole number"),
        ("/training/0/20/..%2f..%2fmetrics", 404, ""),
        ("/training/7/20/x", 404, "no training folder 7"),
        ("/static/../pages.py", 404, ""),
        ("/static/pages.py", 404, "no file"),
        ("/nowhere", 404, "Not Found"),
    ],
)
def test_what_is_not_there(viewer: Viewer, path: str, status: int, says: str) -> None:
    got, _, data = ask(viewer, path)
    assert got == status and says in data.decode()


def test_a_task_is_what_its_picture_shows(viewer: Viewer, seen: Path) -> None:
    import graphbuild as gb

    task = gb.PathSampler(gb.Graph.open(seen / "graph"), seed=3, on_missing="drop").task(7, 256)
    page = ask(viewer, "/tasks?seed=3&index=7")[2].decode()
    assert f"<h1>Task 7: {task.walk.path.name}</h1>" in page
    assert str(task.instruction_full.task).partition("[")[0] in page
    shown = np.asarray(
        Image.open(io.BytesIO(ask(viewer, "/tasks/picture?seed=3&index=7&path=")[2])).convert("RGB"), int
    )
    drawn = np.asarray(task.image(), int)
    assert shown.shape == drawn.shape and abs(shown - drawn).mean() < 3


def test_this_machine_only(viewer: Viewer) -> None:
    """A page elsewhere that makes its name point at this machine sees nothing."""
    assert ask(viewer, "/", Host="graph.example:80")[0] == 403
    assert ask(viewer, "/", Host="localhost:8321")[0] == 200
    headers = ask(viewer, "/")[1]
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"


def test_bound_elsewhere_it_wants_the_token(serve: Callable[..., Viewer], seen: Path) -> None:
    viewer = serve(seen / "graph", "0.0.0.0")
    assert viewer.token and viewer.address.endswith(f"/?token={viewer.token}")
    assert ask(viewer, "/")[0] == ask(viewer, "/?token=guess")[0] == 403
    status, headers, _ = ask(viewer, urlsplit(viewer.address).path + "?" + urlsplit(viewer.address).query)
    assert status == 303 and headers["location"] == "/" and "HttpOnly" in headers["set-cookie"]
    assert ask(viewer, "/", Cookie=headers["set-cookie"].partition(";")[0])[0] == 200
    assert ask(viewer, "/", Cookie="graphbuild-token=guess")[0] == 403


def test_it_only_reads(viewer: Viewer, serve: Callable[..., Viewer], seen: Path) -> None:
    assert ask(viewer, "/item/2/exclude", "POST", "why=x", Origin="http://127.0.0.1")[0] == 403
    assert b"Exclude" not in ask(viewer, "/item/2")[2]
    editing = serve(seen / "graph", edit=True)
    form = ask(editing, "/item/2")[2].decode()
    (secret,) = re.findall(r'name="secret" value="([^"]+)"', form)
    own = f"http://127.0.0.1:{editing.socket.getsockname()[1]}"
    for origin, given in (("http://elsewhere.example", secret), ("", secret), (own, "guess")):
        answer = ask(editing, "/item/2/exclude", "POST", f"why=x&secret={quote(given)}", Origin=origin)
        assert answer[0] == 403
    assert Graph.open(seen / "graph").excluded == {}


def test_a_graph_that_grows_is_seen(serve: Callable[..., Viewer], tmp_path: Path, own_photos: Path) -> None:
    for file in sorted(own_photos.iterdir())[3:]:
        file.unlink()
    build(own_photos, tmp_path / "graph", ["canny"])
    viewer = serve(tmp_path / "graph")
    assert b'value="lines"' not in ask(viewer, "/")[2]
    build(own_photos, tmp_path / "graph", ["lsd"])
    viewer.pages.looking.now(at_once=True)
    assert b'value="lines"' in ask(viewer, "/")[2]


def test_a_graph_without_a_commit_is_shown(serve: Callable[..., Viewer], tmp_path: Path) -> None:
    document = GraphDocument(source=SourceDocument(name="rows", params={}), shard_size=16)
    (tmp_path / "graph.json").write_text(document.model_dump_json())
    viewer = serve(tmp_path)
    for path in ("/", "/failures", "/coverage", "/runs", "/versions"):
        assert ask(viewer, path)[0] == 200, path
    status, _, page = ask(viewer, "/tasks")
    assert status == 400 and b"serves 0 of the 134 paths" in page


def test_a_viewer_that_ends_leaves_no_thread(seen: Path) -> None:
    """Guards against a process, such as a notebook's, whose threads pile up."""
    before = set(threading.enumerate())
    with running(seen / "graph") as viewer:
        assert ask(viewer, "/")[0] == 200
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in left if name.startswith("graphbuild")]


def test_a_shipped_page_needs_nothing_else() -> None:
    """Everything that a page loads lies in the package: no address of another host in it."""
    import graphbuild.view

    folder = Path(graphbuild.view.__file__).parent
    for file in [*folder.glob("templates/*"), *folder.glob("static/*")]:
        addresses = set(re.findall(r"https?://[^\s\"'<)]+", file.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file
        assert not re.search(r"\son\w+=|\sstyle=", file.read_text(encoding="utf-8")) or file.suffix == ".js", file
