"""Foreground masks by BiRefNet and networks with the same interface."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphbuild.annotators.base import Condition, Derived, Request, Resources, Side, Skip, parameter
from graphbuild.config.strict_yaml import Share
from graphbuild.images.codecs import Pixels
from graphbuild.models.checkpoint import TRANSFORMERS, Checkpoint
from graphbuild.models.device import Dtype, frozen, torch_dtype
from graphbuild.models.resizing import in_stacks, map_at, picture_at

MODEL = "ZhengPeng7/BiRefNet"
AUTO_CLASS = "AutoModelForImageSegmentation"

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, 0..1, which these networks were trained on."""


@dataclass(frozen=True, kw_only=True)
class Birefnet(Condition):
    """Mask of the main subject, white on black (P. Zheng et al., "Bilateral Reference for High-Resolution Dichotomous
    Image Segmentation", arXiv 2401.03407).

    The picture is stretched to a square of `resolution`; the probability of the foreground comes back bilinearly (by
    area where it shrinks) and is cut at `threshold`. The score is the share of the picture that is foreground (0..1).
    Skips with `no_foreground` where there is none.

    The network is not part of transformers: its code comes with the checkpoint and runs on this machine only with
    `trust_remote_code`. That code is pinned and hashed like the weights.

    Args:
        model: a hub repository (`org/name` or `org/name@commit`) or a local folder: a checkpoint that brings an
            `AutoModelForImageSegmentation` whose last output is the logits of the foreground, N x 1 x H x W.
        trust_remote_code: run the Python code that comes with the checkpoint.
        resolution: side in pixels of the square at which the network works; 1024 is what the default was trained at.
        threshold: least probability of a foreground pixel (0..1).
        dtype: precision of weights and activations.
    """

    makes: ClassVar[tuple[str, ...]] = ("foreground_mask",)
    item_facts: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "transformers")
    model: str = parameter(MODEL, output=False)
    trust_remote_code: bool = parameter(False, output=False, trusted=True)
    resolution: Side = 1024
    threshold: Share = 0.5
    dtype: Dtype = "float32"
    resources: Resources = Resources(memory_gb=12, batch_size=4)

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        files = (*TRANSFORMERS, "*.py")
        if self.model.partition("@")[0] == MODEL:
            return {"model": Checkpoint(self.model, files, licence="mit", gigabytes=0.4)}
        return {"model": Checkpoint(self.model, files)}

    def missing(self) -> list[str]:
        return [*super().missing(), *self._code_missing()]

    def load(self, device: str) -> _Network:
        """
        Raises:
            ValueError: `trust_remote_code` is off, or the checkpoint's code cannot be used.
            RuntimeError: the weights are those of another network.
        """
        from safetensors.torch import load_file
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        if lines := self._code_missing():
            raise ValueError(lines[0])
        folder = self.checkpoints()["model"].folder()
        # Not by the Auto class: it builds networks without memory for their weights, where code that computes with
        # tensors while it builds fails, and it keeps the first network it meets for all that share its configuration.
        kind: Any = get_class_from_dynamic_module(_code(folder), str(folder), local_files_only=True)
        network = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        weights: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        network.load_state_dict(weights)
        return _Network(frozen(network, device, self.dtype), device)

    def annotate(self, batch: Sequence[Request], model: _Network) -> list[Derived | Skip]:
        pictures = [request.inputs["image"].array() for request in batch]
        maps = self._foreground(pictures, model)
        return [
            foreground_mask(map_at(one, picture.shape[:2]), self.threshold)
            for one, picture in zip(maps, pictures, strict=True)
        ]

    def _foreground(self, pictures: Sequence[Pixels], model: _Network) -> list[NDArray[np.float32]]:
        """Probabilities, resolution x resolution."""
        import torch

        def run(stack: torch.Tensor, places: list[int]) -> list[NDArray[np.float32]]:
            pixels = (stack.float() / 255 - torch.tensor(_MEAN)) / torch.tensor(_DEVIATION)
            output = model.network(pixels.permute(0, 3, 1, 2).to(model.device, torch_dtype(self.dtype)))
            logits = output if isinstance(output, torch.Tensor) else output[-1]
            return list(logits[:, 0].float().sigmoid().cpu().numpy())

        square = (self.resolution, self.resolution)
        with torch.no_grad():  # code that keeps tensors from one call to the next fails in inference mode
            return in_stacks([torch.from_numpy(picture_at(picture, square)) for picture in pictures], run)

    def _code_missing(self) -> list[str]:
        """Why the checkpoint's own code cannot run, one line each."""
        if self.checkpoints()["model"].missing():
            # What the default brings is known before it is here.
            return self._untrusted() if self.model.partition("@")[0] == MODEL else []
        folder = self.checkpoints()["model"].folder()
        where, _, target = _code(folder).rpartition("--")
        if where or not target:
            fault = f"its code is in another repository, {where}" if where else f"its config.json names no {AUTO_CLASS}"
            return [f"model: {self.model}: {fault}; allowed: checkpoints that bring their own code"]
        module = folder / f"{target.partition('.')[0]}.py"
        if not module.is_file():  # fetched by its name alone, which does not say that it needs code
            return [
                f"{self.model}: {module.name} is not here: graphbuild models fetch --pipeline FILE, naming it there"
            ]
        return [*self._untrusted(), *self._libraries_missing(module)]

    def _untrusted(self) -> list[str]:
        line = f"{self.model}: brings Python code of its own; read it and set trust_remote_code: true to run it"
        return [] if self.trust_remote_code else [line]

    def _libraries_missing(self, module: Path) -> list[str]:
        if find_spec("transformers") is None:
            return []  # said already, and what reads the code is part of it
        from transformers.dynamic_module_utils import get_imports, get_relative_import_files

        files = [str(module), *get_relative_import_files(module)]
        absent = sorted({name for file in files for name in get_imports(file) if find_spec(name) is None})
        line = f"{self.model}: its code imports {', '.join(absent)}: pip install {' '.join(absent)}"
        return [line] if absent else []


def _code(folder: Path) -> str:
    """The checkpoint's network as `module.Class`; `org/name--module.Class` if it is elsewhere, "" if there is none."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    return str(config.get("auto_map", {}).get(AUTO_CLASS, ""))


@dataclass(frozen=True, slots=True)
class _Network:
    network: Any
    device: str


def foreground_mask(probability: NDArray[np.float32], threshold: float) -> Derived | Skip:
    """The mask of the pixels that are foreground with at least `threshold`, from H x W probabilities."""
    mask = probability >= threshold
    return Derived({"foreground_mask": mask}, score=float(mask.mean())) if mask.any() else Skip("no_foreground")
