"""Pictures drawn in the style of a reference: on tiny random weights, so what is checked is what reaches the
network and what comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from graphbuild.annotators import resolve
from graphbuild.annotators.base import Annotator, Derived, Request, needs_of, params_of
from graphbuild.annotators.instant_style import InstantStyle
from graphbuild.annotators.redux_style import ReduxStyle
from graphbuild.annotators.style_picker import StylePicker
from graphbuild.images.codecs import Pixels
from graphbuild.models.diffusion import drawing_size
from graphbuild.models.redux_depth import averaged
from graphbuild.store.graph import Graph
from tests.annotators.test_style_picker import item, node
from tests.support.annotators import build, complete
from tests.support.tiny_checkpoints_diffusion import tiny_instant_style, tiny_redux_style, tiny_style_picker

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

# EulerDiscreteScheduler, with every numpy of today.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def photo(photos: Path, number: int, shape: tuple[int, int] = (101, 67)) -> Pixels:
    picture = cv2.imread(str(sorted(photos.iterdir())[number]), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(picture, shape[::-1])  # type: ignore[return-value]


def request(picture: Pixels, style: Pixels, *, seed: int = 1, caption: str = "A cat.", **others: Any) -> Request:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    values = {"image": picture, "style_reference": style, "caption": caption, "depth": grey, "canny": grey > 128}
    nodes = {kind: node(kind, value) for kind, value in {**values, **others}.items()}
    return Request(item(), nodes, 0, seed)


def made(annotator: Annotator, model: Any, *requests: Request) -> list[Pixels]:
    """What an annotator draws, each as its codec keeps it."""
    results = annotator.annotate(requests, model)
    assert len(results) == len(requests)
    arrays = []
    for result in results:
        assert isinstance(result, Derived)
        ((kind, value),) = result.nodes.items()
        arrays.append(np.asarray(value))
        assert node(kind, value).array().shape == arrays[-1].shape
    return arrays


def differ(one: Pixels, other: Pixels) -> bool:
    return not np.array_equal(one, other)


# ---- pictures in a style ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instant(tmp_path_factory: pytest.TempPathFactory) -> InstantStyle:
    return InstantStyle(**tiny_instant_style(tmp_path_factory.mktemp("instant")))


@pytest.fixture(scope="module")
def redux(tmp_path_factory: pytest.TempPathFactory) -> ReduxStyle:
    return ReduxStyle(**tiny_redux_style(tmp_path_factory.mktemp("redux")))


@pytest.fixture(scope="module")
def drawn_by(instant: InstantStyle, redux: ReduxStyle) -> Callable[[str], tuple[Annotator, Any]]:
    """Each annotator with its model, loaded once."""
    loaded = {"instant": (instant, instant.load("cpu")), "redux": (redux, redux.load("cpu"))}
    return loaded.__getitem__


both = pytest.mark.parametrize("name", ["instant", "redux"])


@both
def test_drawings_follow_style_seed_and_layout(
    name: str, drawn_by: Callable[[str], tuple[Annotator, Any]], photos: Path
) -> None:
    """Guards against an input that does not reach the network, noise that depends on what ran before, and a batch that
    differs from single requests."""
    annotator, model = drawn_by(name)
    picture, style, other = (photo(photos, number) for number in range(3))
    first = request(picture, style)
    changed = [
        request(picture, other),
        request(picture, style, seed=2),
        request(picture, style, depth=255 - cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)),
    ]
    (expected,) = made(annotator, model, first)
    assert expected.shape == picture.shape and expected.dtype == np.uint8 and expected.std() > 5
    torch.rand(3)
    batch = made(annotator, model, *changed, first)
    assert np.array_equal(batch[-1], expected)
    assert all(differ(one, expected) for one in batch[:-1])
    assert [one.tolist() for one in made(annotator, model, changed[1])] == [batch[1].tolist()]


@both
@pytest.mark.parametrize("shape", [(16, 16), (101, 67), (5, 300)])
def test_any_size(
    name: str, drawn_by: Callable[[str], tuple[Annotator, Any]], shape: tuple[int, int], photos: Path
) -> None:
    """Guards against sides that latents cannot have, and results at the size of the network."""
    annotator, model = drawn_by(name)
    grey = np.repeat(photo(photos, 4, shape)[:, :, :1], 3, axis=2)
    assert made(annotator, model, request(grey, photo(photos, 1, (40, 90))))[0].shape == (*shape, 3)


@both
def test_precision_and_models_of_the_version(name: str, drawn_by: Callable[[str], tuple[Annotator, Any]]) -> None:
    """Guards against a new version for another folder of the same weights, and none for other pixels."""
    annotator, _ = drawn_by(name)
    assert not {"model", "redux", "ip_adapter", "controlnet"} & set(params_of(annotator))
    for change in ({"dtype": "bfloat16"}, {"steps": 3}, {"guidance": 1.0}, {"resolution": 128}):
        assert params_of(replace(annotator, **change)) != params_of(annotator)
    assert annotator.missing() == [] and (annotator.identity() or "").count("files:") == len(annotator.checkpoints())


@both
def test_half_precision(name: str, drawn_by: Callable[[str], tuple[Annotator, Any]], photos: Path) -> None:
    """Guards against parts that stay behind in another precision, which no float32 test shows."""
    annotator = replace(drawn_by(name)[0], dtype="bfloat16")  # type: ignore[call-arg]
    drawn = made(annotator, annotator.load("cpu"), request(photo(photos, 0), photo(photos, 1)))[0]
    assert (
        np.abs(drawn.astype(float) - made(*drawn_by(name), request(photo(photos, 0), photo(photos, 1)))[0]).mean() < 9
    )


@pytest.mark.parametrize(
    ("use", "lines"),
    [
        ("instant_style", ["xl-base-1.0 (13.9 GB, openrail++)", "IP-Adapter (4.4 GB", "depth-sdxl-1.0 (5 GB"]),
        ("redux_style", ["FLUX.1-Depth-dev (24 GB, flux-1-dev-non-commercial", "Redux-dev (1 GB"]),
        ("fill_edit", ["FLUX.1-Fill-dev (33.7 GB, flux-1-dev-non-commercial"]),
        ("depth_edit", ["FLUX.1-Depth-dev (33.7 GB, flux-1-dev-non-commercial", "Redux-dev (1 GB"]),
    ],
)
def test_what_is_missing_and_how_to_get_it(use: str, lines: list[str]) -> None:
    """Guards against a run that finds out by itself, one download after the other, and licences nobody was told of."""
    missing = resolve(use).missing()
    assert len(missing) == len(lines)
    for line, words in zip(missing, lines, strict=True):
        assert words in line and "graphbuild models fetch" in line
    assert all(
        c.commercial != (c.licence == "flux-1-dev-non-commercial-license") for c in resolve(use).checkpoints().values()
    )


@pytest.mark.parametrize("name", ["instant", "redux"])
def test_nothing_is_said_while_drawing(
    name: str,
    drawn_by: Callable[[str], tuple[Annotator, Any]],
    photos: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Guards against bars of progress on every worker, and two warnings a picture: CLIP reads 77 tokens, captions have
    more."""
    libraries = [logging.getLogger(library) for library in ("diffusers", "transformers")]
    for library in libraries:  # they hand nothing on
        library.addHandler(caplog.handler)
    try:
        annotator, _ = drawn_by(name)
        long = request(photo(photos, 0), photo(photos, 1), caption="A cat on a sofa beside a lamp. " * 30)
        made(annotator, annotator.load("cpu"), long)
    finally:
        for library in libraries:
            library.removeHandler(caplog.handler)
    assert caplog.records == [] and capfd.readouterr() == ("", "")


# ---- InstantStyle -------------------------------------------------------------------------------------------------


def test_only_the_style_layer_sees_the_style(instant: InstantStyle, photos: Path) -> None:
    """Guards against IP-Adapter at full strength everywhere, which copies the content of the reference as well."""
    model = replace(instant, style_strength=0.7).load("cpu")
    scales = {name: one.scale for name, one in model.unet.attn_processors.items() if hasattr(one, "scale")}
    seeing = {name for name, scale in scales.items() if scale != [0.0]}
    assert seeing and seeing == {name for name in scales if name.startswith("up_blocks.0.attentions.1.")}
    assert {tuple(scales[name]) for name in seeing} == {(0.7,)}
    blind = replace(instant, style_strength=0.0)
    one, other = (request(photo(photos, 0), photo(photos, number)) for number in (1, 2))
    assert not differ(*made(blind, blind.load("cpu"), one, other))
    assert model.watermark is None


def test_control_decides_what_is_read(instant: InstantStyle, photos: Path) -> None:
    """Guards against a control that is named and not used, or used and not a parent."""
    seen = {}
    for control in ("none", "depth", "canny"):
        annotator = replace(instant, control=control)  # type: ignore[arg-type]
        needs = ["image", "style_reference", "caption", *([] if control == "none" else [control])]
        assert list(needs_of(annotator)) == needs
        assert ("controlnet" in annotator.checkpoints()) == (control != "none")
        whole = request(photo(photos, 0), photo(photos, 1))
        read = replace(whole, inputs={kind: whole.inputs[kind] for kind in needs})
        (seen[control],) = made(annotator, annotator.load("cpu"), read)
    assert differ(seen["none"], seen["depth"]) and differ(seen["depth"], seen["canny"])
    assert InstantStyle(control="canny").checkpoints()["controlnet"].model == "diffusers/controlnet-canny-sdxl-1.0"


def test_caption_and_flaws_reach_the_network(instant: InstantStyle, photos: Path) -> None:
    """Guards against prompts that are dropped where embeddings are prepared."""
    model = instant.load("cpu")
    first = request(photo(photos, 0), photo(photos, 1))
    other = request(photo(photos, 0), photo(photos, 1), caption="A dog.")
    expected, worded = made(instant, model, first, other)
    assert differ(worded, expected)
    assert differ(made(replace(instant, negative_prompt="snow"), model, first)[0], expected)


# ---- Redux --------------------------------------------------------------------------------------------------------


def test_redux_needs_no_text_encoders(redux: ReduxStyle) -> None:
    """Guards against 10 GB of weights loaded for nothing."""
    model = redux.load("cpu")
    assert model.control.text_encoder is None is model.control.text_encoder_2
    assert not any("text" in file for file in redux.checkpoints()["model"].files)


def test_without_words_redux_is_what_diffusers_makes_of_it(redux: ReduxStyle, photos: Path) -> None:
    """Guards against other padding than the prior's 512 zeros, which its own code makes for the real widths only."""
    model, style = redux.load("cpu"), photo(photos, 1)
    embedded, pooled = model.embedded(style, None)
    with torch.inference_mode():
        patches = model.prior.encode_image(style, "cpu", 1)
        expected = model.prior.image_embedder(patches).image_embeds
    assert embedded.shape == (1, 512 + 16, 16) and pooled.shape == (1, 16)
    assert torch.equal(embedded[:, 512:], expected) and not embedded[:, :512].any() and not pooled.any()


def test_tokens_are_averaged_where_they_lie() -> None:
    """Guards against averages over rows, or over another order of the tokens."""
    tokens = torch.arange(36.0).reshape(1, 36, 1)
    assert torch.equal(averaged(tokens, 6), tokens) and torch.equal(averaged(tokens, 27), tokens)
    expected = torch.tensor([[7.0], [10.0], [25.0], [28.0]])
    assert torch.equal(averaged(tokens, 2)[0], expected)


# ---- in a graph ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Brightness(Annotator):
    """A stand-in for depth."""

    makes: ClassVar[tuple[str, ...]] = ("depth",)

    def annotate(self, batch: Any, model: Any) -> list[Derived]:
        return [Derived({"depth": cv2.cvtColor(one.inputs["image"].array(), cv2.COLOR_RGB2GRAY)}) for one in batch]


def test_styles_in_a_graph(photos: Path, tmp_path: Path, instant: InstantStyle, redux: ReduxStyle) -> None:
    """Guards against a stylised picture that is not the child of its own reference."""
    folder = tmp_path / "two"
    folder.mkdir()
    for file in sorted(photos.iterdir())[:2]:
        (folder / file.name).write_bytes(file.read_bytes())
        (folder / file.name).with_suffix(".txt").write_text(f"This is {file.stem}.")
    styles = StylePicker(**tiny_style_picker(tmp_path / "styles"), variants=2)
    annotators = ["source_caption", Brightness(), styles, instant, redux]
    complete(build(folder, tmp_path / "g", annotators))
    graph = Graph.open(tmp_path / "g")
    counts = graph.kinds()
    assert [counts[kind] for kind in ("style_reference", "style_content", "style_semantic")] == [4, 4, 4]
    for kind in ("style_content", "style_semantic"):
        for edge in graph.edges(kind=kind).to_pylist():
            parents = {parent["kind"]: parent for parent in edge["parents"]}
            assert parents["style_reference"]["variant"] == edge["variant"]
            image = graph.read(edge["item_ix"], "image").array()
            assert graph.read(edge["item_ix"], kind, variant=edge["variant"]).array().shape == image.shape
    assert differ(*(graph.read(0, "style_semantic", variant=variant).array() for variant in (0, 1)))
    assert graph.read(0, "style_reference", variant=1).attrs["file"].startswith("style")


@pytest.mark.parametrize(
    ("shape", "asked", "least", "size"),
    [
        ((512, 512), None, 512, (512, 512)),
        ((512, 512), None, 768, (768, 768)),
        ((512, 512), 1024, 512, (1024, 1024)),
        ((96, 128), None, 512, (448, 592)),
        ((3000, 4000), None, 512, (880, 1184)),
    ],
)
def test_pictures_are_drawn_at_their_own_size(
    shape: tuple[int, int], asked: int | None, least: int, size: tuple[int, int]
) -> None:
    """Guards against pictures of 512 pixels that are drawn at 1024: four times the work, then thrown away."""
    assert drawing_size(np.zeros((*shape, 3), np.uint8), asked, least) == size


def test_following_the_picture_is_another_version_than_a_size() -> None:
    """Guards against graphs whose styles were drawn at another size than their version says."""
    assert params_of(ReduxStyle())["resolution"] is None
    assert params_of(ReduxStyle(resolution=1024))["resolution"] == 1024
    with pytest.raises(ValueError, match="resolution"):
        ReduxStyle(resolution=8)
