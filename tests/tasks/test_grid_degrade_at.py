"""What a degradation acts on: the picture fitted to 512 px, the stored picture, or the cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from graphbuild.data import GridTasks
from graphbuild.images import degradations
from graphbuild.images.codecs import Pixels
from graphbuild.store.graph import Graph
from graphbuild.tasks.cells import cover, fit_size, stretch
from graphbuild.tasks.config import CellConfig, SamplerConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.paths import PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from tests.support.annotators import build
from tests.support.cells import centre_square

KINDS = ("gaussian_noise", "pixelate", "rotate_90", "rotate_180")
PATHS = PathSet(
    name="degraded", paths=tuple(TaskPath(name=kind, cells=(kind, "image"), targets=(1,)) for kind in KINDS)
)
PLACES = ("512", "source", "cell")
SIDE = 48


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> PathSampler:
    """Two photographs of 900 x 600 px."""
    import skimage
    from PIL import Image

    folder = tmp_path_factory.mktemp("large") / "photos"
    folder.mkdir()
    with Image.open(Path(skimage.__file__).parent / "data" / "coffee.png") as photo:
        large = photo.convert("RGB").resize((900, 600), Image.Resampling.BICUBIC)
    large.save(folder / "a.png")
    large.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(folder / "b.png")
    build(folder, folder.parent / "g", [])
    return PathSampler(Graph.open(folder.parent / "g"), PATHS, config=SamplerConfig(rows=(1,)))


def task(sampler: PathSampler, kind: str, **switches: Any) -> GridTask:
    """Degraded picture -> photograph, one row."""
    walk = sampler.walk(0, path=kind, items=[0], hole=1)
    return sampler.task(walk, SIDE, cells=CellConfig(**switches))


def photo(sampler: PathSampler) -> Pixels:
    return sampler.graph.read(0, "image").array()


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_degradation_acts(kind: str, sampler: PathSampler) -> None:
    """Guards against a switch that changes nothing, or the seed as well."""
    picture, seed = photo(sampler), sampler.walk(0, path=kind, items=[0]).seeds[0]

    def degraded(pixels: Pixels) -> Pixels:
        return degradations.apply(kind, pixels, seed)

    expected = {
        "512": centre_square(degraded(degradations.fit(picture)), SIDE),
        "source": centre_square(degraded(picture), SIDE),
        "cell": degraded(centre_square(picture, SIDE)),
    }
    cells = {at: task(sampler, kind, degrade_at=at).cell(0, 0) for at in PLACES}
    for at in PLACES:
        assert np.array_equal(cells[at], expected[at]), at
        assert np.array_equal(task(sampler, kind, degrade_at=at).cell(0, 1), centre_square(picture, SIDE))
    squeezed = task(sampler, kind, degrade_at="cell", cell_fit="stretch_square").cell(0, 0)
    assert np.array_equal(squeezed, degraded(stretch(picture, (SIDE, SIDE))))


def test_the_difference_is_visible(sampler: PathSampler) -> None:
    """Noise of a large picture is averaged away in a small cell; noise of the cell itself is not."""
    clean = centre_square(photo(sampler), SIDE).astype(float)
    noise = [np.abs(task(sampler, "gaussian_noise", degrade_at=at).cell(0, 0) - clean).mean() for at in PLACES]
    assert noise[2] > 3 * noise[0] and noise[0] > 1.3 * noise[1]


def test_the_default_keeps_its_pixels(sampler: PathSampler) -> None:
    """Guards against another rule for 512 px: latents and recorded walks of older releases would be wrong."""
    pixels = {kind: xxhash.xxh3_64_hexdigest(task(sampler, kind).cell(0, 0).tobytes()) for kind in KINDS}
    assert pixels == {
        "gaussian_noise": "8dbb2780cd9b9ee4",
        "pixelate": "dd90bbcf18756280",
        "rotate_90": "f027065ce0cc8aa0",
        "rotate_180": "dd7a58e9aaf9dbc6",
    }


def test_quarter_turns_of_cells_that_are_no_squares(sampler: PathSampler) -> None:
    """Guards against a row whose cells differ in size, and a first cell that asks for the size it has when turned."""
    upright = fit_size((900, 600), SIDE)
    turned = task(sampler, "rotate_90", degrade_at="cell", cell_fit="aspect")
    cell = np.rot90(cover(photo(sampler), upright), -1)
    assert [made.shape[1::-1] for made in turned.cells(filled=True)[0]] == [upright, upright]
    assert np.array_equal(turned.cell(0, 0), cover(np.ascontiguousarray(cell), upright))
    for at in ("512", "source"):
        shapes = [made.shape[1::-1] for made in task(sampler, "rotate_90", degrade_at=at, cell_fit="aspect").cells()[0]]
        assert shapes == [upright[::-1]] * 2


@pytest.mark.parametrize("kind", ["gaussian_noise", "pixelate", "rotate_180"])
@pytest.mark.parametrize("row_sizes", ["shared", "own"])
def test_degraded_cells_lie_like_the_others_of_their_row(sampler: PathSampler, kind: str, row_sizes: Any) -> None:
    """Guards against a degraded cell that is cut a second time, and so larger than the picture beside it."""
    walk = sampler.walk(0, path=kind, items=[1, 0], columns=(0, 1))
    made = sampler.task(walk, 64, cells=CellConfig(cell_fit="aspect", degrade_at="cell", row_sizes=row_sizes))
    for row, seed in enumerate(walk.seeds):
        clean = np.ascontiguousarray(made.cell(row, 1))
        assert clean.shape == (48, 64, 3) and np.array_equal(made.cell(row, 0), degradations.apply(kind, clean, seed))


def test_a_cell_alone_is_found_whatever_is_asked_first(sampler: PathSampler) -> None:
    """The size of a row must not depend on a picture that depends on the size of the row."""
    for kind in KINDS:
        for row in (0, -1):
            made = task(sampler, kind, degrade_at="cell", cell_fit="aspect")
            assert np.array_equal(
                made.cell(row, 0), task(sampler, kind, **vars(made.cell_config)).cells(filled=True)[0][0]
            )


def test_it_is_recorded_and_part_of_the_keys(sampler: PathSampler) -> None:
    """Latents of a picture that was degraded elsewhere must not be taken for these."""
    keys = set()
    for at in PLACES:
        switches = CellConfig(degrade_at=at)  # type: ignore[arg-type]
        (sample,) = GridTasks(sampler, resolution=SIDE, stop=1, cells=switches, rank=0, world=1)
        keys |= {sample.key, *sample.row_keys, sample.cell_keys[0][0]}
        assert sample.document().switches["degrade_at"] == at
        assert np.array_equal(sample.cell(0, 0), sampler.task(0, SIDE, cells=switches).cell(0, 0))
    assert len(keys) == 9


def test_what_the_pipeline_is_given(sampler: PathSampler) -> None:
    """The pipeline resizes what it gets: a degraded cell has to survive that, or be refused."""
    for kind in KINDS:
        made = task(sampler, kind, degrade_at="cell")
        given = np.asarray(made.pipeline_kwargs()["image"][0][0])
        assert np.array_equal(cover(given, (SIDE, SIDE)), made.cell(0, 0))
    with pytest.raises(ValueError, match="degrade_at: 'cell'; allowed"):
        task(sampler, "pixelate", degrade_at="cell", cell_fit="aspect").pipeline_kwargs()
    plain = sampler.walk(0, path="pixelate", items=[0], hole=0)
    assert sampler.task(plain, SIDE, cells=CellConfig(cell_fit="aspect")).pipeline_kwargs()
