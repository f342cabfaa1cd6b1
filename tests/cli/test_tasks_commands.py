"""`tasks`, `sample` and `explain`: what people and machines read of task lists, walks and nodes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from graphbuild.cli import app
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import SamplerConfig
from graphbuild.tasks.explain import sample as explained
from graphbuild.tasks.instruction import KEEP_ALL, Keep
from graphbuild.tasks.paths import load
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build, complete, write_photos


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tasks") / "g"
    complete(build(photos, out, ["canny", "grabcut"], shard_size=4))
    return out


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cli(*argv: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(arg) for arg in argv])
    assert result.exit_code == code, result.output
    return result


# ---- tasks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["graph200k", "graph200k_released"])
def test_a_list_is_listed(name: str) -> None:
    """Every path with its columns and chance, in the order of the list."""
    listed, rows = load(name), json.loads(cli("tasks", "--paths", name, "--json").stdout)
    assert [row["name"] for row in rows] == [path.name for path in listed.paths]
    assert [row["cells"] for row in rows] == [len(path.cells) for path in listed.paths]
    assert [row["type"] for row in rows] == [path.type for path in listed.paths]
    assert [row["probability"] for row in rows] == pytest.approx(listed.probabilities().tolist())
    styled = next(row for row in rows if "style_content" in row["kinds"])
    assert {"style_reference", "style_content"} <= set(styled["kinds"]) and styled["cells"] == len(styled["kinds"])
    table = cli("tasks", "--paths", name).stdout.splitlines()
    assert len(table) == 1 + len(rows) and all(row["name"] in line for row, line in zip(rows, table[1:], strict=True))


def test_a_graph_says_what_it_serves(graph: Path) -> None:
    """Items of each path; what is dropped gives its chance to the others of its type."""
    sampler = PathSampler(Graph.open(graph), on_missing="drop")
    rows = json.loads(cli("tasks", graph, "--json").stdout)
    assert {row["name"]: row["items"] for row in rows} == {n: c["all"] for n, c in sampler.coverage().items()}
    assert {row["name"] for row in rows if row["probability"]} == {path.name for path in sampler.paths}
    assert sum(row["probability"] for row in rows) == pytest.approx(1)
    counted = json.loads(cli("tasks", graph, "--weights", "coverage", "--json").stdout)
    coverage = PathSampler(Graph.open(graph), on_missing="drop", config=SamplerConfig(weights="coverage"))
    assert {row["name"]: row["probability"] for row in counted if row["probability"]} == coverage.probabilities()
    assert "name one" in cli("tasks", "--weights", "coverage", code=2).stderr
    lines = cli("tasks", graph).stdout.splitlines()
    assert lines[-1] == f"{len(sampler.paths)} of 134 paths can be served"


def test_a_graph_that_serves_nothing_still_gets_its_table(graph: Path) -> None:
    """Exit 1, the counts, and the reason."""
    Path("own.yaml").write_text("paths: [{name: a, cells: [hed, image]}]\n")
    result = cli("tasks", graph, "--paths", "own.yaml", code=1)
    assert result.stdout.splitlines()[-1] == "0 of 1 paths can be served" and "no hed (1 path: a)" in result.stderr
    rows = json.loads(cli("tasks", graph, "--paths", "own.yaml", "--json", code=1).stdout)
    assert [(row["items"], row["probability"]) for row in rows] == [(0, 0.0)]
    cli("tasks", "--paths", "nonsense", code=2)


# ---- sample ----------------------------------------------------------------------------------------------------


def test_switches_of_sample_are_recorded(graph: Path) -> None:
    """What is asked for on the command line is what is drawn, and is written down."""
    switches = (
        "--path-repeat",
        2,
        "--mask",
        "paper",
        "--layout",
        "random",
        "--weights",
        "coverage",
        "--cell-fit",
        "aspect",
        "--row-sizes",
        "own",
    )
    cli("sample", graph, "--format", "jsonl", "--count", 6, *switches)
    walks = [json.loads(line) for line in Path("grids/walks.jsonl").read_text().splitlines()]
    config = SamplerConfig(mask="paper", layout="random", weights="coverage")
    sampler = PathSampler(Graph.open(graph), path_repeat=2, on_missing="drop", config=config)
    for walk in walks:
        drawn = sampler.walk(walk["index"])
        assert (walk["path"], tuple(walk["rows"]), tuple(walk["holes"])) == (drawn.path.name, drawn.rows, drawn.holes)
        assert (
            walk["switches"].items()
            >= {"mask": "paper", "layout": "random", "cell_fit": "aspect", "row_sizes": "own"}.items()
        )
        assert walk["path_repeat"] == 2
    assert os.listdir("grids") == ["walks.jsonl"]


def _drawn(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "walks.jsonl").read_text().splitlines()]


def test_sample_takes_the_whole_sampler_configuration(graph: Path) -> None:
    """Guards against train and validation sets that only Python can draw, and options that a file overrides."""
    Path("own.yaml").write_text("{split: train, validation: 0.4, rows: [1, 1], keep: {task: 0.0}, mask: paper}")
    options = ("--where", "item_ix: {'>=': 4}", "--held-out", "{given: canny, holes: image}", "--mask", "code")
    cli("sample", graph, "--format", "jsonl", "--count", 40, "--sampler", "own.yaml", *options, "--out", "train")
    config = SamplerConfig(
        split="train", validation=0.4, rows=(1, 1), keep={"task": 0.0},
        where={"item_ix": {">=": 4}}, held_out={"given": "canny", "holes": "image"},
    )  # type: ignore[arg-type]  # fmt: skip
    sampler = PathSampler(Graph.open(graph), on_missing="drop", config=config)
    walks = _drawn(Path("train"))
    assert [(walk["path"], tuple(walk["rows"])) for walk in walks] == [
        (walk.path.name, walk.rows) for walk in sampler.walks(0, 40)
    ]
    why = json.loads(cli("explain", graph, "--sample", 7, "--sampler", "own.yaml", *options, "--json").stdout)
    lines = cli("explain", graph, "--sample", 7, "--sampler", "own.yaml", *options).stdout
    assert 'where {"item_ix": {">=": 4}}' in lines  # as it can be given, not as Python prints it
    assert [row["item_ix"] for row in why["rows"]] == walks[7]["rows"] and {"where", "keep"} <= set(why["switches"])
    assert all("turns" not in walk["instruction"] and len(walk["rows"]) <= 2 for walk in walks)
    assert all(walk["instruction_full"].startswith(walk["instruction"]) and walk["instruction_full"] for walk in walks)
    cli("sample", graph, "--format", "jsonl", "--count", 40, "--sampler", "own.yaml", "--split", "validation")
    items = [{item for walk in _drawn(Path(out)) for item in walk["rows"]} for out in ("train", "grids")]
    assert all(items) and not items[0] & items[1]
    cli("sample", graph, "--format", "jsonl", "--keep", "{task: 1, content: 1, all: 1}", "--rows", "1", "--out", "all")
    assert all(walk["instruction"] == walk["instruction_full"] for walk in _drawn(Path("all")))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--sampler", "bad.yaml"), "bad.yaml: unknown key 'splt'"),
        (("--sampler", "none.yaml"), "none.yaml: no such file"),
        (("--where", "{a: "), "--where '{a: '"),
        (("--split", "test"), "split"),
        (("--rows", "0,0"), "rows"),
        (("--held-out", "{given: dept}"), "dept"),
        (("--resolution", "100000"), "100000: a cell takes 27.9 GiB; allowed: 1..8192"),
    ],
)
def test_wrong_settings_of_sample_are_refused(graph: Path, option: tuple[str, str], said: str) -> None:
    """What is wrong, and where, before there is a folder."""
    Path("bad.yaml").write_text("splt: train")
    assert said in cli("sample", graph, *option, "--out", "out", code=2).stderr and not Path("out").exists()


def test_paths_without_items_are_left_out_when_asked(graph: Path, tmp_path: Path) -> None:
    """Guards against a list that is usable from Python only, as long as an annotator has not run."""
    asked = ("sample", graph, "--paths", "graph200k", "--count", 1, "--resolution", 16, "--out", tmp_path)
    assert "on_missing drop" in cli(*asked, code=2).output
    cli(*asked, "--on-missing", "drop")
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert "allowed: error, drop" in cli(*asked, "--on-missing", "skip", code=2).output


@pytest.mark.parametrize(("form", "name"), [("parquet", "tasks.parquet"), ("webdataset", "tasks.tar")])
def test_other_formats_are_one_file(graph: Path, form: str, name: str) -> None:
    """The one line that is printed is where it lies."""
    printed = cli("sample", graph, "--format", form, "--count", 2, "--resolution", 16).stdout
    assert printed.split() == [f"grids/{name}"] and Path("grids", name).stat().st_size > 0


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        (("--format", "zip"), ["known: jsonl, parquet, png, webdataset"]),
        (("--mask", "none"), ["mask", "code, paper"]),
        (("--cell-fit", "round"), ["cell_fit", "aspect"]),
        (("--layout", "own"), ["layout", "pipeline, random"]),
        (("--path-repeat", "0"), ["--path-repeat"]),
    ],
)
def test_wrong_switches_are_refused(graph: Path, option: tuple[str, str], parts: list[str]) -> None:
    """With what is allowed, and before anything is written."""
    result = cli("sample", graph, *option, code=2)
    assert all(part in result.stderr for part in parts) and os.listdir() == []


# ---- explain ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["code", "paper"])
def test_a_walk_is_explained(graph: Path, mask: Any) -> None:
    """Items, kinds, variants, versions, seeds, holes and words are those of the task."""
    opened = Graph.open(graph)
    keys = dict(zip(*(opened.items()[name].to_pylist() for name in ("item_ix", "key")), strict=True))
    sampler = PathSampler(opened, seed=4, on_missing="drop", config=SamplerConfig(mask=mask))
    reasons = set()
    for index in range(12):
        found = json.loads(cli("explain", graph, "--sample", index, "--seed", 4, "--mask", mask, "--json").stdout)
        task, walk = sampler.task(index, 16), sampler.walk(index)
        assert [(row["item_ix"], row["key"]) for row in found["rows"]] == [(ix, keys[ix]) for ix in walk.rows]
        for row, nodes, seed in zip(found["rows"], task.rows, walk.seeds, strict=True):
            for cell, node in zip(row["cells"], nodes, strict=True):
                assert (cell["kind"], cell["variant"], cell.get("version", "")) == (
                    node.kind,
                    node.variant,
                    node.version,
                )
                assert cell.get("seed", seed) == seed and ("seed" in cell) == (node.version == "")
        assert found["switches"] == sampler.config.changed()
        assert found["chance"] == sampler.probabilities()[walk.path.name]
        assert found["mask"]["holes"] == list(walk.holes) and 0 < found["mask"]["chance"] <= 1
        assert ("drawn" in found["mask"]["why"]) == (walk.holes != walk.targets)
        reasons.add(found["mask"]["why"].partition(";")[0])
        assert found["words"]["prompt"] == task.prompt
        assert found["words"]["task"]["kept"] == bool(task.instruction.task)
        assert found["words"]["task"]["text"] == task.evaluation.task
        lines = cli("explain", graph, "--sample", index, "--seed", 4, "--mask", mask).stdout
        assert ("mask paper" in lines) == (mask == "paper")
        assert all(str(keys[ix]) in lines for ix in walk.rows) and f"grid task {index}: {walk.path.name}" in lines
    assert len(reasons) == 2


def test_words_left_out_are_those_that_would_have_been_drawn(tmp_path: Path) -> None:
    """Guards against showing the sentences of another layout for parts that a walk left out."""
    for photo in write_photos(tmp_path / "photos", range(4)).iterdir():
        photo.with_suffix(".txt").write_text("A thing.")
    complete(build(tmp_path / "photos", tmp_path / "g", ["canny", "source_caption"]))
    keep = Keep(task=0.0, content=0.0, all=1.0)
    sampler = PathSampler(
        Graph.open(tmp_path / "g"), on_missing="drop", config=SamplerConfig(layout="random", keep=keep)
    )
    contents = set()
    for index in range(20):
        found = explained(sampler, index)["words"]
        whole = sampler.task(index, 16).words("random", KEEP_ALL)
        assert (found["task"]["text"], found["content"]["text"]) == (whole.task, whole.content)
        assert not found["task"]["kept"] and found["prompt"] == whole.layout
        contents.add(whole.content)
    assert len(contents) > 2


def test_phrases_are_those_in_the_prompt(graph: Path) -> None:
    """The chosen phrase of every column stands in the words, left out or not."""
    for index in range(8):
        found = json.loads(cli("explain", graph, "--sample", index, "--json").stdout)
        for number, column in enumerate(found["columns"], 1):
            assert f"[IMAGE{number}] {column['phrase']}" in found["words"]["task"]["text"]


def test_a_node_is_explained(graph: Path) -> None:
    """Its edge, parents and place; by number or by key; a computed one by what it is computed from."""
    opened = Graph.open(graph)
    node = opened.read(6, "canny")
    found = json.loads(cli("explain", graph, 6, "canny", "--json").stdout)
    assert found["version"] == node.version and found["edge"]["content_hash"] == node.edge["content_hash"]
    assert found["annotator"] == "canny" and found["params"]["low"] == 100.0
    assert [parent["kind"] for parent in found["edge"]["parents"]] == ["image"]
    assert json.loads(cli("explain", graph, found["key"], "canny", "--json").stdout) == found
    lines = cli("explain", graph, 6, "canny").stdout
    assert found["edge"]["part"] in lines and "canny" in lines and "parent: " in lines
    computed = json.loads(cli("explain", graph, 7, "foreground", "--json").stdout)
    assert [parent["kind"] for parent in computed["computed_from"]] == ["image", "foreground_mask"]
    assert "computed on read" in cli("explain", graph, 7, "foreground").stdout


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ((), "--sample"),
        (("3",), "KIND"),
        (("3", "canny", "--sample", "1"), "--sample"),
        (("nobody.jpg", "canny"), "nobody.jpg"),
        (("999", "canny"), "999"),
        (("3", "hed"), "hed"),
        (("3", "canny", "--variant", "7"), "variant 7"),
        (("--sample", "1", "--paths", "graph200k"), "serves"),
    ],
)
def test_what_cannot_be_explained_is_refused(graph: Path, argv: tuple[str, ...], part: str) -> None:
    """Exit 2 and one line that says why."""
    assert part in cli("explain", graph, *argv, code=2).stderr
