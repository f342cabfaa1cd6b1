"""A vision-language model in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype
from graphbuild.models.vlm import Cut, Question, Reply

if TYPE_CHECKING:
    import torch

_LEAST_PIXELS = 56 * 56
_DRAWING = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True, slots=True)
class LocalVlm:
    """A model of the Qwen-VL family on its device, and its processor.

    Attributes:
        settings: how the checkpoint says that tokens are drawn.
    """

    network: Any
    processor: Any
    device: str
    settings: Settings

    def ask(
        self,
        questions: Sequence[Question],
        *,
        max_new_tokens: int,
        temperature: float | None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """One reply per question, in order, all in one batch; see `Vlm`."""
        import torch

        if not questions:
            return []
        inputs = self.processor(
            text=[self._conversation(question.turns) for question in questions],
            images=[question.picture for question in questions],
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        drawn = self.settings.at(temperature).processors([question.seed for question in questions])
        with torch.inference_mode():
            tokens = self.network.generate(**inputs, max_new_tokens=max_new_tokens, logits_processor=drawn)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        ends = torch.tensor(self.network.generation_config.eos_token_id or [], device=answers.device)
        whole = torch.isin(answers, ends).any(dim=1).tolist()
        words = self.processor.batch_decode(answers, skip_special_tokens=True)
        return [said if ended else Cut(said) for said, ended in zip(words, whole, strict=True)]

    def _conversation(self, turns: Sequence[str]) -> str:
        """What was said, with a place for the picture before it, as the model is used to reading it."""
        said: list[list[dict[str, str]]] = [[{"type": "text", "text": turn}] for turn in turns]
        said[0].insert(0, {"type": "image"})
        messages = [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(said)]
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def load_vlm(folder: Path, device: str, dtype: Dtype, max_side: int) -> LocalVlm:
    """Any image-text-to-text model of the Qwen-VL family from a folder in transformers' format.

    Args:
        max_side: of the pictures it will be shown, pixels; the processor leaves those as they are.
    """
    import transformers

    library: Any = transformers  # parts of it have no annotations
    hide_loading_bars()
    network = library.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch_dtype(dtype), use_safetensors=True, local_files_only=True
    )
    own = network.generation_config
    settings = Settings.of(own)
    # Draws are ours, so that they follow the request's seed; penalties and what ends an answer stay the checkpoint's.
    own.update(do_sample=False, **dict.fromkeys(_DRAWING))
    processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.tokenizer.padding_side = "left"
    processor.image_processor.size = {"shortest_edge": _LEAST_PIXELS, "longest_edge": max_side**2}
    return LocalVlm(frozen(network, device, dtype), processor, device, settings)


@dataclass(frozen=True, slots=True)
class Settings:
    """How tokens are drawn, in transformers' terms; `temperature` 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @classmethod
    def of(cls, config: Any) -> Settings:
        """Those of a `GenerationConfig`."""
        said = {name: getattr(config, name) for name in _DRAWING}
        heat = 1.0 if said["temperature"] is None else said["temperature"]
        return cls(**{**said, "temperature": heat if config.do_sample else 0.0})

    def at(self, temperature: float | None) -> Settings:
        """The same at another temperature, unless that is None."""
        return self if temperature is None else replace(self, temperature=temperature)

    def processors(self, seeds: Sequence[int]) -> list[Any]:
        """What makes `generate` draw each row of a batch from its own seed."""
        from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        if not self.temperature:
            return []
        warpers: list[Any] = [TemperatureLogitsWarper(float(self.temperature))]
        warpers += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        warpers += [TopPLogitsWarper(self.top_p)] if self.top_p is not None else []
        warpers += [MinPLogitsWarper(self.min_p)] if self.min_p is not None else []
        return [*warpers, _Draws(seeds)]


class _Draws:
    """Samples from softmax(scores) by Gumbel noise, each row from its own generator: a row does not depend on its
    batch, and no global generator is touched."""

    def __init__(self, seeds: Sequence[int]) -> None:
        import torch

        self.generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        size = scores.shape[1]
        noise = [-torch.empty(size).exponential_(generator=generator).log() for generator in self.generators]
        return scores + torch.stack(noise).to(scores)
