"""Readers that know nothing of graphbuild: datasets, DuckDB, Polars, pyarrow, Ray Data."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from graphbuild.annotators.canny import Canny
from graphbuild.images.colour import profile_of, to_srgb
from graphbuild.store.graph import Graph
from tests.support import icc
from tests.support.annotators import Ordered, build, complete


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with captions, a kind that is partly skipped, and a replaced version."""
    base = tmp_path_factory.mktemp("readers")
    shutil.copytree(photos, base / "photos")
    (base / "photos/p03.txt").write_text("A caption, with ümlauts.")
    complete(build(base / "photos", base / "g", [Canny(low=50.0), "source_caption"], shard_size=6))
    complete(build(base / "photos", base / "g", ["canny", "lsd"]))
    return base / "g"


def _load(*args: Any, **options: Any) -> Any:
    import datasets  # type: ignore[import-untyped]

    return datasets.load_dataset(*args, split="train", **options)


def test_datasets_from_files(folder: Path) -> None:
    """Guards against raw bytes or null columns where `datasets` should give pictures without options."""
    graph = Graph.open(folder)
    for kind in ("image", "canny"):
        rows = _load("parquet", data_files=graph.files(kind))
        assert rows["item_ix"][:] == list(range(18))
        for row in rows:
            assert isinstance(row["image"], Image.Image)
            assert row["image"].size == graph.read(row["item_ix"], kind).array().shape[1::-1]
        shown = rows[3]["image"]
        # `datasets` does not convert colours: what it shows of a photo with a profile is the file's own values.
        pixels, profile = np.asarray(shown.convert("RGB")), profile_of(shown)
        pixels = pixels if profile is None else to_srgb(pixels, profile)
        assert np.array_equal(pixels, graph.read(3, kind).array())


def test_other_readers_find_and_convert_profiles_as_the_docs_say(tmp_path: Path) -> None:
    """Guards against profiles that are lost on the way, and a query in docs/format.md that finds none."""
    import duckdb

    profile = icc.rgb_profile(*icc.DISPLAY_P3, "wide")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    for name, extra in (("plain", {}), ("wide", {"icc_profile": profile})):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png", **extra)
    complete(build(tmp_path / "photos", tmp_path / "graph", ["source_caption"]))
    graph = Graph.open(tmp_path / "graph")
    query = "select item_ix, attrs->>'$.profile' from '{}/edges/*/*/*.parquet' where attrs->>'$.profile' is not null"
    assert duckdb.sql(query.format(tmp_path / "graph")).fetchall() == [(1, "wide")]
    shown = _load("parquet", data_files=graph.files("image"))[1]["image"]
    assert np.array_equal(np.asarray(shown), pixels), "the file's own numbers"
    embedded = ImageCms.ImageCmsProfile(io.BytesIO(shown.info["icc_profile"]))
    converted = ImageCms.profileToProfile(shown, embedded, ImageCms.createProfile("sRGB"))
    ours = graph.read(1, "image").array()
    assert np.array_equal(np.asarray(converted), ours) and not np.array_equal(ours, pixels)


def test_datasets_from_the_card(folder: Path) -> None:
    """Guards against a card that names retired parts, or that `datasets` cannot read."""
    import datasets

    graph = Graph.open(folder)
    kinds = {kind for kind, count in graph.kinds().items() if count}
    assert set(datasets.get_dataset_config_names(str(folder))) == kinds | {"items", "edges"}
    for kind in kinds - {"caption"}:
        rows = _load(str(folder), kind)
        assert len(rows) == graph.kinds()[kind] and isinstance(rows[0]["image"], Image.Image)
    assert _load(str(folder), "caption")["payload"][:] == ["A caption, with ümlauts."]
    assert _load(str(folder), "items")["key"][:] == graph.items().column("key").to_pylist()
    assert len(_load(str(folder), "edges")) == graph.edges().num_rows


def test_a_retried_node_is_seen_once(photos: Path, tmp_path: Path, control: Callable[..., str]) -> None:
    """Guards against plain readers that see a node of both revisions, or none of it."""
    tag = control({"p03.png": "fail"})
    complete(build(photos, tmp_path / "g", [Ordered(tag=tag)], shard_size=9))
    control({})
    complete(build(photos, tmp_path / "g", [Ordered(tag=tag)], retry=True))
    graph = Graph.open(tmp_path / "g")
    assert graph.commits("canny")[0].ref.revision == 1
    for rows in (_load("parquet", data_files=graph.files("canny")), _load(str(tmp_path / "g"), "canny")):
        assert sorted(rows["item_ix"][:]) == list(range(18))


def test_a_replaced_row_is_seen_once(photos: Path, tmp_path: Path, control: Callable[..., str]) -> None:
    """Guards against the stale row of a rewritten part being listed beside its replacement."""
    tag = control({"p03.png": "fail", "p04.jpg": "skip"})
    producers = [Ordered(tag=tag)]
    complete(build(photos, tmp_path / "g", producers, shard_size=18))
    control({"p05.png": "fail"})
    complete(build(photos, tmp_path / "g", producers, retry=True))
    graph = Graph.open(tmp_path / "g")
    expected = [ix for ix in range(18) if ix != 4]
    assert sorted(_load("parquet", data_files=graph.files("canny"))["item_ix"][:]) == expected
    assert sorted(_load(str(tmp_path / "g"), "canny")["item_ix"][:]) == expected


def test_duckdb(folder: Path) -> None:
    """Guards against hive columns that clash with ours, and types DuckDB cannot read."""
    import duckdb

    graph = Graph.open(folder)
    query = """
        select i.key, e.status, n.image.bytes as data
        from read_parquet(?) i join read_parquet(?) e using (item_ix)
        left join read_parquet(?) n using (item_ix) where e.kind = 'canny' order by item_ix
    """
    rows = duckdb.execute(query, [graph.files("items"), graph.files("edges"), graph.files("canny")]).fetchall()
    assert [row[0] for row in rows] == graph.items().column("key").to_pylist()
    assert {row[1] for row in rows} == {"ok"} and bytes(rows[7][2]) == graph.read(7, "canny").bytes
    glob = f"{folder}/nodes/kind=*/version=*/*.parquet"
    kinds = duckdb.execute("select distinct kind from read_parquet(?, hive_partitioning=true)", [glob]).fetchall()
    assert {kind for (kind,) in kinds} >= {"image", "canny", "lines"}


def test_sql_counts_each_node_once(photos: Path, tmp_path: Path, control: Callable[..., str]) -> None:
    """Guards against rows of commits that a retry replaced, and folders whose names are patterns."""
    producers = [Ordered(tag=control({"p05.png": "fail"}))]
    complete(build(photos, tmp_path / "g[1]*'", producers))
    before = Graph.open(tmp_path / "g[1]*'")
    query = "select status, count(*) from edges where kind = $kind group by all order by all"
    assert before.sql(query, kind="canny").fetchall() == [("failed", 1), ("ok", 17)]
    control({})
    complete(build(photos, tmp_path / "g[1]*'", producers, retry=True))
    graph = Graph.open(tmp_path / "g[1]*'")
    assert graph.sql(query, kind="canny").fetchall() == [("ok", 18)]
    assert before.sql(query, kind="canny").fetchall() == [("failed", 1), ("ok", 17)]
    rows = graph.sql("select key, image.bytes from nodes join items using (item_ix) where kind = 'canny' order by all")
    keys = graph.items().column("key").to_pylist()
    assert [(key, bytes(data)) for key, data in rows.fetchall()] == [
        (key, graph.read(at, "canny").bytes) for at, key in enumerate(keys)
    ]
    assert graph.sql("select count(*) from nodes").fetchall() == [(36,)]


def test_polars(folder: Path) -> None:
    """Guards against parts Polars cannot scan, or versions it reads as numbers."""
    import polars as pl

    graph = Graph.open(folder)
    edges = pl.scan_parquet(graph.files("edges")).filter(pl.col("kind") == "canny").collect()
    assert edges["item_ix"].sort().to_list() == list(range(18))
    nodes = pl.read_parquet(graph.files("canny"))
    assert nodes.sort("item_ix")["image"].struct.field("bytes")[7] == graph.read(7, "canny").bytes
    hive = pl.scan_parquet(f"{folder}/nodes/", hive_partitioning=True, glob=True).select("kind", "version").collect()
    assert hive["version"].dtype == pl.String and set(hive["version"].str.head(1)) == {"v"}


def test_pyarrow_dataset(folder: Path) -> None:
    """Guards against parts of one kind with different schemas."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    graph = Graph.open(folder)
    nodes = ds.dataset(graph.files("canny")).to_table(filter=pc.field("item_ix") == 7)
    assert nodes.column("image").to_pylist()[0]["bytes"] == graph.read(7, "canny").bytes
    everything = ds.dataset(f"{folder}/nodes", partitioning="hive")
    assert everything.count_rows(filter=pc.field("kind") == "image") == 18
    assert ds.dataset(graph.files("edges")).to_table().num_rows == graph.edges().num_rows


@pytest.mark.slow
@pytest.mark.ray
def test_ray_data(folder: Path, ray_address: str) -> None:
    """Guards against nodes and edges that Ray Data cannot read in parallel."""
    import ray.data

    graph = Graph.open(folder)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    nodes = ray.data.read_parquet(graph.files("canny")).take_all()
    found = {row["item_ix"]: row["image"]["bytes"] for row in nodes}
    assert sorted(found) == list(range(18)) and found[7] == graph.read(7, "canny").bytes
    edges = ray.data.read_parquet(graph.files("edges")).take_all()
    assert sorted(row["item_ix"] for row in edges if row["kind"] == "canny") == list(range(18))


def test_versions_are_no_numbers(folder: Path) -> None:
    """Guards against a reader guessing a number (1e5...) for a version folder."""
    for path in (folder / "nodes").glob("*/version=*"):
        assert path.name.removeprefix("version=v").isalnum() and len(path.name) == len("version=v") + 12
