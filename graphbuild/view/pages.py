"""The pages of the viewer: what each address answers."""

from __future__ import annotations

import hmac
import json
import secrets
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from graphbuild.contracts import Live
from graphbuild.errors import GraphError, MissingNode
from graphbuild.hashing import checksum
from graphbuild.images.node import Node
from graphbuild.kinds.registry import KINDS
from graphbuild.store.card import renew_card
from graphbuild.store.exclusions import exclude, include
from graphbuild.tasks.config import SamplerConfig
from graphbuild.view.draws import COUNTED, Draws
from graphbuild.view.html import render
from graphbuild.view.item import item_graph, mend
from graphbuild.view.look import Look, Looking
from graphbuild.view.outcomes import STATUSES
from graphbuild.view.picture import SIZES, WORDS, Address, Thumbnails, encoded, stored, tag
from graphbuild.view.query import Hit, Query, find
from graphbuild.view.runs import pace, reports, versions
from graphbuild.view.training import read_training

_STATIC = {"style.css": "text/css", "view.js": "text/javascript", "icon.svg": "image/svg+xml"}
_IMAGES = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heif")
_REASONS, _PICTURES, _VERSION_ITEMS, _RESOLUTION = 30, 6, 12, 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is shown.

    Attributes:
        graph: its location.
        training: folders of `graphbuild-train`.
        paths, sampler: the task list, and the switches of the sampler that tasks are drawn with.
        edit: whether items may be excluded.
    """

    graph: str
    training: tuple[Path, ...] = ()
    paths: str | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    edit: bool = False


class Pages:
    """Answers of the viewer.

    Raises:
        GraphError: no graph is there.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.looking = Looking(settings.graph)
        self.thumbnails = Thumbnails()
        self.secret = secrets.token_urlsafe(16)  # of the forms of this page; another site does not know it
        self._draws: tuple[str, Draws] | None = None
        find(
            self.looking.now(), Query.of({}, self.looking.now().kinds)
        )  # loads the libraries and the spine, which the first page would wait for

    def routes(self) -> list[BaseRoute]:
        addresses: dict[str, Callable[[Request], Response]] = {
            "/": self.items,
            "/item/{item:int}": self.item,
            "/failures": self.failures,
            "/coverage": self.coverage,
            "/runs": self.runs,
            "/versions": self.versions,
            "/tasks": self.tasks,
            "/tasks/picture": self.task_picture,
            "/training": self.training,
            "/training/{run:int}/{step:int}/{task}": self.sample,
            "/thumb/{item:int}/{kind}/{variant:int}": self.thumb,
            "/bytes/{item:int}/{kind}/{variant:int}": self.original,
            "/static/{name}": self.static,
        }
        posts = [Route("/item/{item:int}/exclude", self.exclude, methods=["POST"])]
        return [*(Route(path, endpoint) for path, endpoint in addresses.items()), *posts]

    def error_pages(self) -> Mapping[Any, Callable[[Request, Exception], Response]]:
        """A page for what is wrong with a question, or not there."""
        wrong: dict[Any, int] = {GraphError: 400, ValueError: 400, MissingNode: 404, OSError: 503}
        pages = {
            kind: lambda request, error, status=status: self._error(error, status) for kind, status in wrong.items()
        }
        return {**pages, HTTPException: self._http_error}

    def _error(self, error: object, status: int) -> Response:
        return self._page("error.html", status=status, message=str(error))

    def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._error(error.detail, error.status_code)

    def _page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        look = self.looking.now()
        shared = {
            "graph_name": look.graph.url.rstrip("/").rpartition("/")[2], "num_items": look.graph.num_items,
            "has_training": bool(self.settings.training), "here": template, "edit": self.settings.edit,
            "quoted": shlex.quote(look.graph.url), "secret": self.secret if self.settings.edit else "",
        }  # fmt: skip
        return HTMLResponse(render(template, **shared, **values), status)

    # ---- items -------------------------------------------------------------------------------------------------

    def items(self, request: Request) -> Response:
        look = self.looking.now()
        query = Query.of(request.query_params, look.kinds, look.annotators)
        page = find(look, query, request.query_params.get("after", ""))
        cards = [self._card(look, query.kind or hit.kind, hit) for hit in page.hits]
        splits = sorted(
            {*look.facts_of_shard(look.shards[0].index)["split"].drop_null().to_pylist()} if look.shards else ()
        )
        counts = look.counted.of_kinds(query.kinds(look)) if look.counted else None
        reasons = sorted({each.reason for each in look.counted.reasons()} if look.counted else ())
        return self._page(
            "items.html", query=query, page=page, cards=cards, kinds=look.kinds, stored=look.graph.head,
            made=look.made_by(query.annotator), annotators=look.annotators,
            statuses=STATUSES, splits=splits, counts=counts, reasons=reasons,
            following=query.address() + "&" + urlencode({"after": page.after}) if page.after else "",
        )  # fmt: skip

    def _card(self, look: Look, kind: str, hit: Hit) -> dict[str, Any]:
        """What a card shows: the node's picture, or its words, or the picture of an item whose node is not there."""
        place = Address(hit.item_ix, kind, hit.variant if kind in look.graph.head else 0)
        said = hit.status == "ok" and self._codec(look, kind) in WORDS
        shown = place if hit.status == "ok" else self._image_of(look, hit.item_ix)
        return {
            "hit": hit, "kind": kind, "words": stored(look.graph, place).text if said else "",
            "address": None if said else shown, "excluded": look.why_excluded(hit.facts),
        }  # fmt: skip

    def _image_of(self, look: Look, item_ix: int) -> Address | None:
        place = Address(item_ix, "image")
        try:
            tag(look.graph, place)
        except (MissingNode, GraphError):
            return None
        return place

    def _codec(self, look: Look, kind: str) -> str:
        live: Live | None = look.graph.head.get(kind)
        return "source" if live is None else look.lineage(kind).codec[kind]

    def item(self, request: Request) -> Response:
        look, item_ix = self.looking.now(), request.path_params["item"]
        facts = look.facts(item_ix)
        drawn = item_graph(look, item_ix, pace(reports(look.graph.fs)))
        computed = [
            kind for kind in look.kinds if kind not in look.graph.head and self._can_compute(look, item_ix, kind)
        ]
        return self._page(
            "item.html", item_ix=item_ix, facts=facts, drawn=drawn, computed=computed,
            source=lambda box: f"/thumb/{item_ix}/{quote(box.kind)}/{box.variant}?size={SIZES[1]}",
            words=lambda box: stored(look.graph, Address(item_ix, box.kind, box.variant)).text,
            excluded=look.why_excluded(facts), last=look.graph.num_items - 1,
        )  # fmt: skip

    def _can_compute(self, look: Look, item_ix: int, kind: str) -> bool:
        try:
            return bool([tag(look.graph, Address(item_ix, parent)) for parent in KINDS[kind].parents])
        except (MissingNode, GraphError):
            return False

    async def exclude(self, request: Request) -> Response:
        """Leave an item out of every task, or put it back."""
        given = {name: values[-1] for name, values in parse_qs((await request.body()).decode()).items()}
        here = urlsplit(request.headers.get("origin", "")).netloc
        if not self.settings.edit:
            raise HTTPException(403, "this viewer only reads; start it with --edit to exclude items")
        if not hmac.compare_digest(given.get("secret", ""), self.secret) or here != request.headers.get("host"):
            raise HTTPException(403, "not a form of this page; load it again")
        await run_in_threadpool(self._exclude, request.path_params["item"], given.get("why", "").strip())
        return RedirectResponse(f"/item/{request.path_params['item']}", 303)

    def _exclude(self, item_ix: int, why: str) -> None:
        """Exclude an item, or without a reason put an excluded one back."""
        look = self.looking.now()
        facts = look.facts(item_ix)
        if why:
            exclude(look.graph.fs, [facts["item_id"]], why)
        elif look.why_excluded(facts) is not None:
            include(look.graph.fs, [facts["item_id"]])
        else:
            raise GraphError("why: say why the item is excluded; the reason is kept in the graph")
        renew_card(self.settings.graph)
        self.looking.now(at_once=True)

    # ---- the graph as a whole ----------------------------------------------------------------------------------

    def failures(self, request: Request) -> Response:
        look = self.looking.now()
        found = look.outcomes.reasons()
        groups = []
        for each in found[:_REASONS]:
            query = Query(kind=each.kind, status="failed", reason=each.reason)
            hits = find(look, query, limit=_PICTURES).hits
            fix = mend(look.graph, look.graph.live(each.kind).annotator, "failed", each.reason)
            cards = [self._card(look, each.kind, hit) for hit in hits]
            groups.append({"reason": each, "cards": cards, "mend": fix, "address": query.address()})
        return self._page(
            "failures.html", groups=groups, more=found[_REASONS:], skipped=look.outcomes.reasons("skipped")
        )

    def coverage(self, request: Request) -> Response:
        look = self.looking.now()
        return self._page(
            "coverage.html", counts=look.outcomes.counts(), nbytes=look.outcomes.nbytes(), live=look.graph.head,
            statuses=STATUSES,
        )  # fmt: skip

    def runs(self, request: Request) -> Response:
        return self._page("runs.html", reports=reports(self.looking.now().graph.fs))

    def versions(self, request: Request) -> Response:
        """The pictures of two and more versions of a kind, item by item."""
        look = self.looking.now()
        known = versions(look.graph)
        several = [kind for kind, found in known.items() if len(found) > 1]
        kind = request.query_params.get("kind") or (several or [*known, ""])[0]
        if kind and kind not in known:
            raise GraphError(f"kind {kind!r}; allowed: {', '.join(known)}")
        first = int(request.query_params.get("from", "0") or 0)
        items = range(max(0, first), min(look.graph.num_items, max(0, first) + _VERSION_ITEMS))
        columns = known.get(kind, [])
        rows = [[self._version(look, Address(item, kind, 0, each.version)) for each in columns] for item in items]
        keys = [look.facts(item)["key"] for item in items]
        return self._page(
            "versions.html", kind=kind, known=known, several=several, columns=columns,
            rows=[*zip(items, keys, rows, strict=True)],
            following=items.stop if items.stop < look.graph.num_items else 0,
        )  # fmt: skip

    def _version(self, look: Look, place: Address) -> dict[str, Any]:
        try:
            node = stored(look.graph, place)
        except (MissingNode, GraphError) as error:
            return {"address": None, "words": "", "missing": str(error)}
        words = node.text if node.codec in WORDS else ""
        return {"address": None if words else place, "words": words, "missing": ""}

    # ---- tasks and training ------------------------------------------------------------------------------------

    def draws(self) -> Draws:
        """The samplers of the newest state of the graph."""
        look = self.looking.now()
        if self._draws is None or self._draws[0] != look.state:
            self._draws = look.state, Draws(look.graph, self.settings.paths, self.settings.sampler)
        return self._draws[1]

    def tasks(self, request: Request) -> Response:
        seed, index, path = _chosen_task(request)
        draws = self.draws()
        paths = draws.paths(seed)
        task = draws.task(seed, index, path, _RESOLUTION)
        return self._page(
            "tasks.html", seed=seed, index=index, path=path, paths=paths, task=task, counted=COUNTED,
            explained=draws.explained(seed, task), listed=draws.sampler(seed).listed.name, dumps=json.dumps,
            held=next((facts.held_out for facts in paths if facts.path.name == task.walk.path.name), False),
            address=lambda **new: "/tasks?" + urlencode({"seed": seed, "index": index, "path": path, **new}),
            picture="/tasks/picture?" + urlencode({"seed": seed, "index": index, "path": path}),
        )  # fmt: skip

    def task_picture(self, request: Request) -> Response:
        """Exactly what `GridTask.image` shows."""
        import numpy as np

        seed, index, path = _chosen_task(request)
        task = self.draws().task(seed, index, path, _RESOLUTION)
        return _tagged(request, f"{self.looking.now().state}-{seed}-{index}-{path}",
                       lambda: encoded(np.asarray(task.image())), "image/jpeg")  # fmt: skip

    def training(self, request: Request) -> Response:
        found = [read_training(folder) for folder in self.settings.training]
        if not found:
            raise GraphError("no training folder; start the viewer with --training FOLDER")
        return self._page("training.html", runs=found)

    def sample(self, request: Request) -> Response:
        """A picture sampled in training: only files that are listed are opened."""
        at, given = request.path_params["run"], request.path_params
        if at >= len(self.settings.training):
            raise MissingNode(f"no training folder {at}")
        samples = read_training(self.settings.training[at]).samples
        file = samples.get(given["task"], {}).get(given["step"])
        if file is None or file.is_symlink():
            raise MissingNode(f"no sample {given['task']} at step {given['step']}")
        found = file.stat()
        return _tagged(request, f"{found.st_mtime_ns}-{found.st_size}", file.read_bytes, "image/png")

    # ---- bytes -------------------------------------------------------------------------------------------------

    def thumb(self, request: Request) -> Response:
        """A node as a small JPEG."""
        look, place = self.looking.now(), _address(request)
        size = min(SIZES, key=lambda size: abs(size - _integer(request, "size", SIZES[1])))
        of = tag(look.graph, place)
        return _tagged(request, f"{of}-{size}", lambda: self.thumbnails.jpeg(look.graph, place, size, of), "image/jpeg")

    def original(self, request: Request) -> Response:
        """The stored bytes of a node, as a file."""
        place = _address(request)
        node = stored(self.looking.now().graph, place)
        ending, media = _form(node)
        name = f"{place.item_ix:08d}-{place.kind}-{place.variant}.{ending}"
        answer = _tagged(request, tag(self.looking.now().graph, place), lambda: bytes(node.bytes), media)
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return answer

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            raise HTTPException(404, f"no file {name}")
        data = (package_files("graphbuild.view") / "static" / name).read_bytes()
        return _tagged(request, checksum(data), lambda: data, _STATIC[name])


def _tagged(request: Request, of: str, make: Callable[[], bytes], media: str) -> Response:
    """Bytes with an ETag; none where the browser has them."""
    headers = {"ETag": f'"{of}"', "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(make(), media_type=media, headers=headers)


def _address(request: Request) -> Address:
    given = request.path_params
    version = request.query_params.get("version") or None
    return Address(given["item"], given["kind"], given["variant"], version, _integer(request, "seed", 0))


def _form(node: Node) -> tuple[str, str]:
    """Ending and media type of a node's bytes: nothing that a browser would run."""
    if node.format in _IMAGES:
        return node.format, f"image/{node.format}"
    return ("txt", "text/plain; charset=utf-8") if node.format in WORDS else ("bin", "application/octet-stream")


def _chosen_task(request: Request) -> tuple[int, int, str]:
    return _integer(request, "seed", 0), _integer(request, "index", 0), request.query_params.get("path", "")


def _integer(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or len(text) > 18:
        raise GraphError(f"{name} {text!r}: a whole number, not negative")
    return int(text)
