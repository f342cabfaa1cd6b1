"""Metrics of generated pictures: known answers, those of other libraries, and networks end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import _compute_fid

from graphbuild.annotators.depth_anything import DepthAnything
from graphbuild.images.codecs import Pixels
from graphbuild.kinds.registry import kind_of
from graphbuild.store.graph import Graph
from graphbuild_train.metrics import networks as nets
from graphbuild_train.metrics.control import Controls
from graphbuild_train.metrics.example import Example
from graphbuild_train.metrics.frechet import frechet
from graphbuild_train.metrics.pixels import psnr, ssim
from graphbuild_train.metrics.table import METRICS
from tests.support.annotators import build, complete
from tests.support.tiny_checkpoints_dense import tiny_depth_anything
from tests.support.tiny_networks import save_clip, save_dino, save_inception, save_vgg

RNG = np.random.default_rng(0)


def noise(*shape: int) -> Pixels:
    return RNG.integers(0, 256, shape).astype(np.uint8)


PICTURE = np.kron(noise(8, 12, 3), np.ones((6, 6, 1), np.uint8))


def of(name: str, *, made: Pixels = PICTURE, truth: Pixels = PICTURE, kind: str = "image", network: Any = None,
       **more: Any) -> float | None:  # fmt: skip
    example = Example(made=made, truth=truth, kind=kind_of(kind), **more)
    return METRICS[name].measure(example, network)


# ---- without networks --------------------------------------------------------------------------------------------


def test_equal_pictures_are_perfect_and_a_constant_is_worse_than_a_shifted_one() -> None:
    shifted, constant = np.roll(PICTURE, 1, 1), np.full_like(PICTURE, 128)
    assert of("ssim") == 1 and of("psnr") == 100
    for name in ("ssim", "psnr"):
        found = [of(name, made=made) for made in (PICTURE, shifted, constant)]
        assert found == sorted(found, key=lambda value: -(value or 0)), name
    assert of("psnr", made=np.where(PICTURE < 250, PICTURE + 5, PICTURE - 5).astype(np.uint8)) == pytest.approx(
        34.15, abs=0.01
    )
    assert of("ssim", kind="depth") is None and of("psnr", kind="canny") is None  # a map is no picture


def test_they_are_as_torchmetrics_has_them() -> None:
    other = np.clip(PICTURE.astype(int) + RNG.integers(-30, 30, PICTURE.shape), 0, 255).astype(np.uint8)
    ours, theirs = (torch.from_numpy(each.transpose(2, 0, 1)[None].copy()).double() for each in (PICTURE, other))
    assert psnr(other, PICTURE) == pytest.approx(float(peak_signal_noise_ratio(theirs, ours, data_range=255.0)))
    _, places = structural_similarity_index_measure(theirs, ours, data_range=255.0, sigma=1.5, return_full_image=True)
    inside = places[..., 5:-5, 5:-5]  # the original counts no window that leaves the picture, torchmetrics does
    assert ssim(other, PICTURE) == pytest.approx(float(inside.mean()))


def test_restored_pictures_have_an_error_and_others_none() -> None:
    made = np.full_like(PICTURE, 10)
    assert of("rmse", made=made, truth=made + 3, given={"gaussian_noise": PICTURE}) == 3
    assert of("rmse", made=made, truth=made + 3, given={"canny": PICTURE}) is None


def test_estimated_maps_are_compared_by_what_they_are() -> None:
    left, right = (np.zeros((16, 16, 3), np.uint8) for _ in range(2))
    left[:, :8], right[:, 4:12] = 255, 255
    assert of("f1", made=left, truth=right, kind="canny") == pytest.approx(0.5)
    assert of("iou", made=left, truth=right, kind="foreground_mask") == pytest.approx(1 / 3)
    assert of("iou", made=left, truth=right, kind="semantic") == pytest.approx(1 / 3)
    assert of("rmse", made=left, truth=right, kind="depth") == pytest.approx(255 * 0.5**0.5)
    assert of("angular_error", made=left, truth=255 - left, kind="normal") == pytest.approx(180)
    assert of("rmse", made=left, truth=right, kind="canny") is None


def test_conditions_made_again_are_compared_by_what_they_are() -> None:
    edges, none = np.eye(16, dtype=np.uint8) * 255, np.zeros((16, 16), np.uint8)
    assert of("f1", maps={"canny": (edges, edges)}) == 1 and of("f1", maps={"canny": (none, edges)}) == 0
    assert of("f1", maps={"canny": (none, edges), "lines": (edges, edges)}) == 0.5
    assert of("rmse", maps={"depth": (none, none + 9)}) == 9
    pose = {"width": 9, "height": 9, "people": [{"keypoints": [[1, 1, 1], [5, 5, 1]]}]}
    assert of("pck", maps={"pose": (pose, pose)}) == 1
    assert of("f1") is of("rmse") is of("pck") is None


# ---- sets --------------------------------------------------------------------------------------------------------


def test_the_distance_of_sets_has_the_known_answers() -> None:
    features = RNG.normal(size=(50, 8))
    assert frechet(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet(features[::-1], features) == pytest.approx(0, abs=1e-9)  # the order says nothing
    assert frechet(features + 2, features) == pytest.approx(8 * 4)
    assert frechet(3 * features, features) > 1


@pytest.mark.parametrize("count", [40, 6], ids=["more pictures than features", "fewer"])
def test_it_is_torchmetrics_distance(count: int) -> None:
    made, truth = RNG.normal(size=(count, 12)), RNG.normal(size=(count + 3, 12)) * 2 + 1
    moments = [(torch.from_numpy(each.mean(0)), torch.from_numpy(np.cov(each.T))) for each in (made, truth)]
    assert frechet(made, truth) == pytest.approx(float(_compute_fid(*moments[0], *moments[1])), rel=1e-6)


# ---- networks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    saved = {"clip": save_clip(folder / "clip"), "dino": save_dino(folder / "dino"), "vgg": save_vgg(folder / "vgg"),
             "inception": save_inception(folder / "inception.pth")}  # fmt: skip
    return {name: str(path) for name, path in saved.items()}


@pytest.fixture(scope="module")
def loaded(weights: dict[str, str]) -> Iterator[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = nets.networks(weights)
    assert [network.missing() for network in found.values()] == [None] * 4
    yield {name: network.load(network.checkpoint.folder(), "cpu") for name, network in found.items()}
    torch.set_num_threads(threads)


def test_words_and_pictures_are_compared_by_clip(loaded: dict[str, Any]) -> None:
    clip, other = loaded["clip"], noise(48, 72, 3)
    caption = {"caption": "a red bicycle"}
    score = of("clip_score", network=clip, **caption)
    with torch.no_grad():
        image = clip.processor(images=PICTURE, return_tensors="pt")["pixel_values"]
        said = clip.processor(text="a red bicycle", return_tensors="pt")
        theirs = clip.network(pixel_values=image, **said).logits_per_image / clip.network.logit_scale.exp()
    assert score == pytest.approx(max(0, 100 * float(theirs)), abs=1e-4)
    assert of("clip_score", network=clip) is None  # nothing says what it is to show
    subject = {"given": {"reference": PICTURE}, **caption}
    assert of("clip_i", network=clip, **subject) == pytest.approx(100)
    assert (of("clip_i", network=clip, made=other, **subject) or 0) < 99.99
    assert of("clip_t", network=clip, **subject) == pytest.approx(100 * float(theirs), abs=1e-4)
    style = {"given": {"style_reference": other, "reference": other}, "kind": "style_semantic", **caption}
    assert of("style", network=clip, made=other, **style) == pytest.approx(1)
    assert of("text", network=clip, **style) == pytest.approx(float(theirs), abs=1e-6)
    assert of("clip_i", network=clip, **style) is None and of("clip_score", network=clip, **style) is None
    assert clip.words("long " * 100).shape == (16,)  # longer than it reads


def test_subjects_are_compared_by_dino(loaded: dict[str, Any]) -> None:
    given = {"given": {"reference": PICTURE}}
    assert of("dino", network=loaded["dino"], **given) == pytest.approx(100)
    assert (of("dino", network=loaded["dino"], made=255 - PICTURE, **given) or 0) < 99.99
    assert of("dino", network=loaded["dino"]) is None


def test_perceptual_distance_is_the_reference_s(loaded: dict[str, Any], weights: dict[str, str]) -> None:
    network = loaded["vgg"]
    assert of("lpips", network=network) == 0
    near, far = np.clip(PICTURE.astype(int) + 4, 0, 255).astype(np.uint8), noise(48, 72, 3)
    assert 0 < (of("lpips", network=network, made=near) or 0) < (of("lpips", network=network, made=far) or 0)
    from safetensors.torch import load_file
    from torchvision.models import vgg16

    layers = vgg16(weights=None, init_weights=False).features
    saved = load_file(Path(weights["vgg"]) / "model.safetensors")
    layers.load_state_dict({name.removeprefix("features."): value for name, value in saved.items()})
    one = torch.from_numpy(PICTURE.transpose(2, 0, 1).copy())[None] / 127.5 - 1
    shift, scale = (torch.tensor(v)[None, :, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    with torch.no_grad():
        wanted = layers[:4]((one - shift) / scale)
        assert torch.equal(network.network.net((one - shift) / scale).relu1_2, wanted)


def test_inception_features_are_those_of_torch_fidelity(loaded: dict[str, Any], weights: dict[str, str]) -> None:
    whole = noise(299, 299, 3)  # is not resized
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], weights["inception"])
    (wanted,) = theirs(torch.from_numpy(whole.transpose(2, 0, 1).copy())[None])
    assert np.allclose(loaded["inception"].picture(whole), wanted[0].double().numpy(), rtol=1e-4, atol=1e-6)
    assert loaded["inception"].picture(PICTURE).shape == (2048,)


def test_absent_weights_are_named_with_what_gets_them() -> None:
    told = {name: network.missing() or "" for name, network in nets.networks().items()}
    assert "graphbuild models fetch openai/clip-vit-large-patch14" in told["clip"]
    assert "graphbuild models fetch facebook/dinov2-base" in told["dino"]
    assert "--weights" in told["inception"] and "torch-fidelity/releases" in told["inception"]
    with pytest.raises(ValueError, match="weights: 'clap'; allowed: clip, dino, vgg, inception"):
        nets.networks({"clap": "x"})


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    file = tmp_path / "inception.pth"
    torch.save({"x": Path("/")}, file)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        nets.networks({"inception": str(file)})["inception"].load(file, "cpu")


# ---- conditions made again ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, str]:
    """Canny edges, and depths by tiny weights in a folder."""
    folder = tmp_path_factory.mktemp("control")
    depth = tiny_depth_anything(folder)
    complete(build(photos, folder / "graph", ["canny", DepthAnything(**depth)], limit=2))
    return Graph.open(folder / "graph"), str(depth["model"])


def test_conditions_are_made_again_by_the_annotators_of_the_graph(graph: tuple[Graph, str]) -> None:
    made = graph[0].read(0, "image").array()
    controls = Controls(graph[0], weights={"depth": graph[1]})
    same = controls.maps(("canny", "depth", "gaussian_noise"), made, made)
    assert of("f1", maps=same) == 1 and of("rmse", maps=same) == 0 and controls.left_out == {}
    again, stored = same["depth"][1], graph[0].read(0, "depth").values()
    assert np.abs(again.astype(int) - stored).max() <= 1  # in a batch by itself: up to rounding
    other = controls.maps(("canny", "depth"), np.ascontiguousarray(made[::-1]), made)
    assert (of("f1", maps=other) or 0) < 1 and (of("rmse", maps=other) or 0) > 0


def test_what_cannot_be_made_again_is_named(graph: tuple[Graph, str]) -> None:
    made = graph[0].read(0, "image").array()
    controls = Controls(graph[0])
    assert controls.maps(("canny", "depth"), made, made).keys() == {"canny"}
    assert "which is not taken from a graph" in controls.left_out["depth"]
    absent = Controls(graph[0], weights={"depth": "org/none"})
    assert absent.maps(("depth",), made, made) == {}
    assert "graphbuild models fetch org/none" in absent.left_out["depth"]
