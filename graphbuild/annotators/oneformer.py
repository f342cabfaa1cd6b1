"""Semantic segmentation by OneFormer and similar networks, of scenes and of clothes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Side, parameter
from graphbuild.images.codecs import Pixels
from graphbuild.images.rendering import distinct_colours
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype
from graphbuild.models.resizing import HEIGHT_WIDTH_RGB, Size, in_stacks, picture_at, working_size

CLOTHES = "mattmdjaga/segformer_b2_clothes"
MODEL = "shi-labs/oneformer_ade20k_swin_large"
REVISION = "e3ac43d928c8f157382c7d60b0b2f5d24279a4ea"
"""The conversion to safetensors that the hub's own bot offered; the main branch holds the same weights as a pickle."""

ADE20K = bytes.fromhex(
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
    "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
    "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
    "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
    "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
    "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)
"""Red, green and blue of the 150 classes of ADE20K's scene parsing benchmark, in the order of their numbers: what
UniFormer, and so Graph200K, shows. Two share a grey, road (6) and skyscraper (48)."""

_MOST_ASPECT = 4
_STRIDE = 32


@dataclass(frozen=True, slots=True)
class SemanticNetwork:
    """A segmentation network of transformers on its device.

    Attributes:
        network: the model; `processor`: its image processor.
        given: what the network takes besides pixels, for one picture.
        names: of the classes, by number; `palette`: their RGB colours.
    """

    network: Any
    processor: Any
    given: Mapping[str, Any]
    names: Sequence[str]
    palette: Sequence[Sequence[int]]
    device: str


@dataclass(frozen=True, kw_only=True)
class Oneformer(Condition):
    """Semantic segmentation (J. Jain et al., "OneFormer: One Transformer to Rule Universal Image Segmentation",
    arXiv 2211.06220).

    The labels are the numbers of the checkpoint's classes: ADE20K's 150 unless `model` says otherwise. Attrs: `labels`
    and `palette`, name and RGB colour by number, up to the highest number in the picture; a class that is not in it has
    an empty name and is black. Networks of 150 classes get ADE20K's usual colours, others `distinct_colours`.

    The picture is brought to a short side of `resolution` and a long one of at most four times that, both multiples of
    32. The scores of the classes are resized bilinearly to that size, or the picture's where it is smaller; the labels
    of larger pictures are enlarged by nearest neighbour.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder: OneFormer, Mask2Former, or any
            other network that transformers lists for universal or semantic segmentation.
        resolution: short side in pixels at which the network works; 640 is what the default was trained at.
        dtype: precision of weights and activations.
    """

    makes: ClassVar[tuple[str, ...]] = ("semantic",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(f"{MODEL}@{REVISION}", output=False)
    resolution: Side = 640
    dtype: Dtype = "float32"
    resources: Resources = Resources(memory_gb=8, batch_size=4)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        if self.model.partition("@")[0] == MODEL:
            return {"model": Checkpoint(self.model, licence="mit", gigabytes=0.9)}
        return {"model": Checkpoint(self.model)}

    def load(self, device: str) -> SemanticNetwork:
        """
        Raises:
            ValueError: the network has more than 256 classes, or is not one for segmentation.
        """
        from transformers import AutoConfig, AutoImageProcessor
        from transformers import AutoModelForSemanticSegmentation as Semantic
        from transformers import AutoModelForUniversalSegmentation as Universal

        folder = self.checkpoints()["model"].folder()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        names = [_name(config.id2label[number]) for number in range(len(config.id2label))]
        if len(names) > 256:
            raise ValueError(f"model: {self.model} has {len(names)} classes; allowed: up to 256, what a label holds")
        hide_loading_bars()
        kind = Universal if type(config) in Universal._model_mapping else Semantic
        network = kind.from_pretrained(folder, config=config, use_safetensors=True, local_files_only=True)
        # OneFormer's would fetch a list of classes for training from the hub, wherever the checkpoint is.
        unneeded = {"class_info_file": None} if config.model_type == "oneformer" else {}
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, **unneeded)  # type: ignore[no-untyped-call]
        given = _task(folder, config.task_seq_len) if config.model_type == "oneformer" else {}
        palette = np.frombuffer(ADE20K, np.uint8).reshape(-1, 3).tolist()
        palette = palette if len(names) == len(palette) else distinct_colours(len(names))
        return SemanticNetwork(frozen(network, device, self.dtype), processor, given, names, palette, device)

    def annotate(self, batch: Sequence[Request], model: SemanticNetwork) -> list[Derived]:
        pictures = [request.inputs["image"].array() for request in batch]
        maps = self._labels(pictures, model)
        return [_derived(self.makes[0], labels, picture, model) for labels, picture in zip(maps, pictures, strict=True)]

    def _labels(self, pictures: Sequence[Pixels], model: SemanticNetwork) -> list[Pixels]:
        import torch

        most = {"short": self.resolution, "long": _MOST_ASPECT * self.resolution, "multiple": _STRIDE}
        small = [picture_at(picture, working_size(picture, **most)) for picture in pictures]
        sizes = [_fewer(one, picture) for one, picture in zip(small, pictures, strict=True)]

        def run(stack: torch.Tensor, places: list[int]) -> list[Pixels]:
            given = {name: value.expand(len(places), -1).to(model.device) for name, value in model.given.items()}
            output = model.network(pixel_values=stack.to(model.device, torch_dtype(self.dtype)), **given)
            targets = [sizes[place] for place in places]
            labels = model.processor.post_process_semantic_segmentation(_float(output), target_sizes=targets)
            return [one.to("cpu", torch.uint8).numpy() for one in labels]

        with torch.inference_mode():
            inputs = [model.processor(one, do_resize=False, **HEIGHT_WIDTH_RGB)["pixel_values"][0] for one in small]
            return in_stacks(inputs, run)


@dataclass(frozen=True, kw_only=True)
class SegformerClothes(Oneformer):
    """Which garment or part of a person each pixel shows (E. Xie et al., "SegFormer", arXiv 2105.15203, fine-tuned on
    the 18 classes of ATR: Upper-clothes, Skirt, Pants, Dress, Hair, Face, Left-arm, ...).

    Labels, attrs and sizes are those of `oneformer`, whose parameters it has.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder: any semantic segmentation of
            transformers. `try_on` knows classes by the names of ATR.
        resolution: short side in pixels at which the network works.
    """

    makes: ClassVar[tuple[str, ...]] = ("clothes",)
    model: str = parameter(CLOTHES, output=False)
    resolution: Side = 512
    resources: Resources = Resources(memory_gb=3, batch_size=8)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        if self.model.partition("@")[0] == CLOTHES:
            return {"model": Checkpoint(self.model, licence="mit", gigabytes=0.11)}
        return {"model": Checkpoint(self.model)}


def _task(folder: Any, length: int) -> dict[str, Any]:
    """OneFormer's question, 1 x `length` token numbers, 0 where there is none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer("the task is semantic", padding="max_length", max_length=length, return_tensors="pt")
    return {"task_inputs": tokens["input_ids"] * tokens["attention_mask"]}


def _float(output: Any) -> Any:
    """The network's output with the fields that labels are computed from in float32."""
    for name in ("logits", "class_queries_logits", "masks_queries_logits"):
        if name in output:
            output[name] = output[name].float()
    return output


def _fewer(small: Pixels, picture: Pixels) -> Size:
    """The size of the one with fewer pixels, so that the scores of all classes fit in memory for any picture."""
    (height, width), (full_height, full_width) = small.shape[:2], picture.shape[:2]
    return (height, width) if height * width < full_height * full_width else (full_height, full_width)


def _name(label: str) -> str:
    """The first of a class's synonyms."""
    return label.replace(";", ",").partition(",")[0].strip()


def _derived(kind: str, labels: NDArray[np.uint8], picture: Pixels, model: SemanticNetwork) -> Derived:
    import cv2

    height, width = picture.shape[:2]
    if labels.shape != (height, width):
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
    shown = set(np.unique(labels).tolist())
    numbers = range(max(shown) + 1)
    names = [model.names[number] if number in shown else "" for number in numbers]
    palette = [list(model.palette[number]) if number in shown else [0, 0, 0] for number in numbers]
    return Derived({kind: labels}, attrs={"labels": names, "palette": palette})
