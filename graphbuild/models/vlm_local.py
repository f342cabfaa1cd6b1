"""A vision-language model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.models.device import Dtype, frozen, hide_loading_bars, torch_dtype

if TYPE_CHECKING:
    import torch

    from graphbuild.models.vlm import Question, Reply

_LEAST_PIXELS = 56 * 56


@dataclass(frozen=True, slots=True)
class LocalVlm:
    """A model of the Qwen-VL family on its device, and its processor."""

    network: Any
    processor: Any
    device: str

    def ask(self, questions: Sequence[Question], *, max_new_tokens: int, temperature: float) -> list[Reply]:
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
        drawn = [_Draws([question.seed for question in questions], temperature)] if temperature else []
        with torch.inference_mode():
            tokens = self.network.generate(**inputs, max_new_tokens=max_new_tokens, logits_processor=drawn)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return list(self.processor.batch_decode(answers, skip_special_tokens=True))

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
    # Only what ends an answer: its authors' penalties and temperatures are not ours.
    ends = network.generation_config
    ending = {"eos_token_id": ends.eos_token_id, "pad_token_id": ends.pad_token_id}
    network.generation_config = library.GenerationConfig(**ending)
    processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.tokenizer.padding_side = "left"
    processor.image_processor.size = {"shortest_edge": _LEAST_PIXELS, "longest_edge": max_side**2}
    return LocalVlm(frozen(network, device, dtype), processor, device)


class _Draws:
    """Samples from softmax(scores / temperature) by Gumbel noise, each row from its own generator: a row does not
    depend on its batch, and no global generator is touched."""

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        import torch

        self.temperature = temperature
        self.generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        size = scores.shape[1]
        noise = [-torch.empty(size).exponential_(generator=generator).log() for generator in self.generators]
        return scores / self.temperature + torch.stack(noise).to(scores)
