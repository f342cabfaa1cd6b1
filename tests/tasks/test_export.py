"""Grid tasks as files: every format holds the same tasks, and each is read by the reader it is made for."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from graphbuild.errors import GraphError
from graphbuild.images import node
from graphbuild.store.graph import Graph
from graphbuild.tasks.config import CellConfig, SamplerConfig
from graphbuild.tasks.export import open_sampler, write_tasks
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.paths import Content, PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Walk
from tests.support.annotators import build, complete

CAPTION = Content(source="caption", of="image")
PATHS = PathSet(
    name="files",
    paths=(
        TaskPath(name="to/image", cells=("canny", "frost", "image"), targets=(2,), content=CAPTION),
        TaskPath(name="joint", cells=("image", "canny"), targets=(0, 1)),
    ),
)
INDICES = range(5, 25)  # more than a Parquet file holds in memory at once


@pytest.fixture(scope="module")
def sampler(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> PathSampler:
    out = tmp_path_factory.mktemp("files") / "g"
    complete(build(photos, out, ["canny"]))
    return PathSampler(Graph.open(out), PATHS)


def cells_of(task: GridTask) -> list[Any]:
    return [cell for row in task.cells(filled=True) for cell in row]


def test_ids_are_those_of_the_pictures_and_no_picture_is_opened(
    sampler: PathSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand walks must cost no decoding, and be the walks that the pictures show."""
    expected = [sampler.task(index, 32).document().model_dump_json() for index in INDICES]
    for owner, name in ((cv2, "imdecode"), (Image, "open"), (node, "decode_image"), (GridTask, "node")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("a picture was opened"))
    (file,) = write_tasks(sampler, INDICES, 32, tmp_path, form="jsonl")
    assert file == tmp_path / "walks.jsonl" and file.read_text().splitlines() == expected


def test_an_edited_list_is_drawn_again(sampler: PathSampler, tmp_path: Path) -> None:
    """Guards against pictures of what a list said before, for all who try out a list of their own."""
    for cells in (("canny", "image"), ("blur", "image")):
        listed = PathSet(name="mine", paths=(TaskPath(name="same", cells=cells, targets=(1,)),))
        *pictures, walks = write_tasks(PathSampler(sampler.graph, listed), range(2), 32, tmp_path)
        lines = [json.loads(line) for line in walks.read_text().splitlines()]
        assert {cell["kind"] for line in lines for row in line["cells"] for cell in row} == set(cells)
        for index, picture in enumerate(pictures):
            shown = np.asarray(PathSampler(sampler.graph, listed).task(index, 32).image())
            assert np.array_equal(np.asarray(Image.open(picture)), shown)


def test_parquet_holds_walks_words_holes_and_pictures(sampler: PathSampler, tmp_path: Path) -> None:
    """One row a task, its cells row by row, each a whole PNG file."""
    (file,) = write_tasks(sampler, INDICES, 32, tmp_path, form="parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["index"] for row in rows] == list(INDICES)
    for row in rows:
        task = sampler.task(row["index"], 32)
        assert row["walk"] == task.document().model_dump_json() and row["instruction"] == task.prompt
        assert row["instruction_full"] == task.instruction_full.text
        assert row["holes"] == list(task.holes) and (row["rows"], row["columns"]) == task.hole_mask.shape
        shown = [np.asarray(Image.open(io.BytesIO(data))) for data in row["cells"]]
        assert all(np.array_equal(*pair) for pair in zip(shown, cells_of(task), strict=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its archive open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_reads_the_archive(sampler: PathSampler, tmp_path: Path) -> None:
    """Keys without dots, one sample a task; the same bytes whenever it is written."""
    webdataset = pytest.importorskip("webdataset")
    (file,) = write_tasks(sampler, INDICES, 32, tmp_path, form="webdataset")
    samples = list(webdataset.WebDataset(str(file), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"{index:07d}" for index in INDICES]
    for sample in samples:
        task = sampler.task(int(sample["__key__"]), 32)
        assert sample["json"] == json.loads(task.document().model_dump_json())
        names = [f"cell{row}{column}.png" for row, nodes in enumerate(task.rows) for column in range(len(nodes))]
        assert {name for name in sample if name.startswith("cell")} == set(names)
        assert all(np.array_equal(sample[name], cell) for name, cell in zip(names, cells_of(task), strict=True))
    first = file.read_bytes()
    list(write_tasks(sampler, INDICES, 32, tmp_path, form="webdataset"))
    assert file.read_bytes() == first


@pytest.mark.parametrize(
    ("config", "switches"),
    [(SamplerConfig(mask="paper"), CellConfig()), (SamplerConfig(), CellConfig(cell_fit="stretch_square"))],
)
def test_other_switches_are_drawn_again(
    sampler: PathSampler, tmp_path: Path, config: SamplerConfig, switches: CellConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of other masks or other cells must not be taken for those asked for."""
    other = PathSampler(sampler.graph, PATHS, config=config)
    list(write_tasks(sampler, range(3), 16, tmp_path))
    files = list(write_tasks(other, range(3), 16, tmp_path, cells=switches))
    assert all(
        switches.cell_fit == json.loads(line)["switches"]["cell_fit"] for line in files[-1].read_text().splitlines()
    )
    monkeypatch.setattr(GridTask, "image", lambda _: pytest.fail("drawn again"))
    assert list(write_tasks(other, range(3), 16, tmp_path, cells=switches)) == files
    with pytest.raises(pytest.fail.Exception):
        list(write_tasks(sampler, range(3), 16, tmp_path))


def test_a_folder_holds_one_list(sampler: PathSampler, tmp_path: Path) -> None:
    """Guards against pictures of two calls with the list of one, and files of others that are removed."""
    (tmp_path / "mine.png").touch()
    list(write_tasks(sampler, range(4), 16, tmp_path))
    *pictures, walks = write_tasks(PathSampler(sampler.graph, PATHS, seed=9), range(2, 5), 16, tmp_path)
    assert {*tmp_path.iterdir()} == {*pictures, walks, tmp_path / "mine.png"} and len(pictures) == 3
    assert [json.loads(line)["seed"] for line in walks.read_text().splitlines()] == [9] * 3
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("place", ["image", "save"])
def test_stopped_it_lists_what_is_drawn(
    sampler: PathSampler, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a task is made or a picture written: no partial or hidden file, and a list of what is there."""
    written = []
    drawn = list(write_tasks(sampler, range(3), 16, tmp_path))

    def stopping(self: Any, *args: Any) -> Any:
        written.append(self)
        if len(written) == 2:
            if args:
                args[0].write(b"half")
            raise KeyboardInterrupt
        return original(self, *args)

    owner: Any = GridTask if place == "image" else Image.Image
    original = getattr(owner, place)
    monkeypatch.setattr(owner, place, stopping)
    with pytest.raises(KeyboardInterrupt):
        list(write_tasks(sampler, range(1, 6), 24, tmp_path))
    (walk,) = [json.loads(line) for line in drawn[-1].read_text().splitlines()]
    assert (walk["index"], walk["resolution"]) == (1, 24)
    assert {file.name for file in tmp_path.iterdir()} == {"walks.jsonl", drawn[1].name}


ODD = "a\x1b[31m/\x00\n\"'\u202e\u05d0" + "\U0001f600" * 300


@pytest.mark.parametrize("form", ["png", "jsonl", "parquet", "webdataset"])
def test_odd_names_and_words_do_not_stop_an_export(tmp_path: Path, photos: Path, form: str) -> None:
    """Escapes, NUL, line breaks, quotes, marks of direction and long names, in a path and a caption: every task is
    written, with the caption as it is."""
    file = sorted(photos.glob("*.jpg"))[0]
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.jpg").write_bytes(file.read_bytes())
    (tmp_path / "p/a.txt").write_bytes(ODD[:40].encode())
    complete(build(tmp_path / "p", tmp_path / "g", ["canny", "source_caption"]))
    path = TaskPath(name=ODD, cells=("canny", "image"), targets=(1,), content=CAPTION)
    listed = PathSampler(Graph.open(tmp_path / "g"), PathSet(name="odd", paths=(path,)))
    *_, file = write_tasks(listed, range(2), 16, tmp_path / "out", form=form)
    if form in ("png", "jsonl"):
        found = [json.loads(line) for line in file.read_text().splitlines()]
    elif form == "parquet":
        found = pq.read_table(file).to_pylist()
    else:
        with tarfile.open(file) as archive:
            found = [json.load(archive.extractfile(name)) for name in archive.getnames() if name.endswith("json")]  # type: ignore[arg-type]
    assert [row["path"] for row in found] == [ODD] * 2
    assert all(row["instruction_full"].endswith(ODD[:40].strip()) for row in found)
    assert all(len(name.encode()) < 256 and name.isprintable() for name in os.listdir(tmp_path / "out"))


@pytest.mark.parametrize("form", ["jsonl", "parquet", "webdataset"])
def test_a_file_appears_whole_or_not_at_all(
    sampler: PathSampler, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped half way, an archive would be read as a shorter one."""

    def stopping(index: int) -> Walk:
        return PathSampler.walk(sampler, index) if index < 7 else pytest.fail("stopped")

    monkeypatch.setattr(sampler, "walk", stopping)
    with pytest.raises(pytest.fail.Exception, match="stopped"):
        list(write_tasks(sampler, range(5, 9), 16, tmp_path, form=form))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(sampler: PathSampler, tmp_path: Path) -> None:
    """Before a folder is made."""
    with pytest.raises(ValueError, match=r"unknown task format 'zip'; known: jsonl, parquet, png, webdataset"):
        list(write_tasks(sampler, INDICES, 32, tmp_path / "out", form="zip"))
    assert not (tmp_path / "out").exists()


def test_all_paths_that_are_served_or_those_asked_for(sampler: PathSampler) -> None:
    """Without a list what is missing is left out; a list that was named is an error if it is not served."""
    opened = open_sampler(sampler.graph, None, seed=3, path_repeat=2, config=SamplerConfig(mask="paper"))
    assert (opened.seed, opened.path_repeat, opened.config.mask) == (3, 2, "paper") and 0 < len(opened.paths) < 134
    with pytest.raises(GraphError):
        open_sampler(sampler.graph, "graph200k")
