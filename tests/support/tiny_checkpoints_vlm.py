"""Tiny random vision-language models, whole with tokenizer, chat template and picture processor.

A random model writes nonsense. These have a vocabulary in which every word that can come out is a whole answer, and
stop after one: which answer it is depends on the weights, the picture and the question, that it is a good one does not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphbuild.annotators.base import Resources

THINGS = ("cat", "bicycle", "brass lamp", "pineapple", "toy robot", "teapot", "stack of books", "paper boat")
PLACES = ("on a wooden table", "against a white wall", "on wet sand", "in long grass", "under a street lamp", "in snow")
_EACH = tuple((thing, place) for thing in THINGS for place in PLACES)
CAPTIONS = tuple(f"A {thing} {place}, seen from the side in soft light." for thing, place in _EACH)
EDITS = tuple(
    json.dumps({
        "subject": f"a {thing}", "caption": f"A {thing} {place}.", "instruction": f"Put a {thing} in its place.",
    })
    for thing, place in _EACH
)  # fmt: skip
BACKGROUNDS = tuple(
    json.dumps({"background": where, "caption": f"The {thing} is {where}.", "instruction": f"Set it {where}."})
    for thing, where in _EACH
)
BOXES = tuple(
    json.dumps([{"bbox_2d": [left, 8, left + 56, 80], "label": thing}, {"bbox_2d": [4, 4, 40, 52], "label": "leaf"}])
    for left, thing in zip(range(0, 56, 7), THINGS, strict=True)
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VIDEO = "<|video_pad|>"
WORDS = "Describe picture subject caption background objects boxes JSON a the of in idea number not"
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant\n{% endif %}"
)


def tiny_vlm_caption(folder: Path) -> dict[str, Any]:
    """Weights for `VlmCaption` in `folder`, and its keyword arguments."""
    return _arguments(tiny_vlm(folder / "vlm", CAPTIONS))


def tiny_vlm_edits(folder: Path) -> dict[str, Any]:
    """Weights for `VlmEdits` in `folder`, and its keyword arguments."""
    return _arguments(tiny_vlm(folder / "vlm", EDITS))


def tiny_vlm_background(folder: Path) -> dict[str, Any]:
    """Weights for `VlmBackground` in `folder`, and its keyword arguments."""
    return _arguments(tiny_vlm(folder / "vlm", BACKGROUNDS))


def tiny_open_world(folder: Path) -> dict[str, Any]:
    """Weights for `OpenWorld` in `folder`, SAM 2's too, and its keyword arguments."""
    from tests.support.tiny_checkpoints_regions import tiny_sam2

    sam2 = Path(tiny_sam2(folder)["model"])
    _never_empty(sam2 / "model.safetensors")
    return {**_arguments(tiny_vlm(folder / "vlm", BOXES)), "sam2": str(sam2)}


def _never_empty(weights: Path) -> None:
    """Raise the logits of SAM 2's masks: random ones are below 0 everywhere as often as not."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    raised = [name for name in tensors if name.endswith(("upscale_conv2.bias", "mlps.0.proj_out.bias"))]
    assert len(raised) == 2, raised
    save_file(tensors | {name: tensors[name] + 2.0 for name in raised}, weights, {"format": "pt"})


def _arguments(model: Path) -> dict[str, Any]:
    small = {"resources": Resources(memory_gb=0.5, batch_size=4)}
    return {"model": str(model), "dtype": "float32", "max_new_tokens": 1, "max_side": 112, **small}


def tiny_vlm(folder: Path, answers: Sequence[str], *, family: str = "qwen2_5_vl") -> Path:
    """A Qwen2.5-VL or Qwen3-VL whose next word is one of `answers` (an even number), saved in `folder`; always the same
    weights."""
    import torch
    from transformers import AutoModelForImageTextToText

    tokenizer = _tokenizer(answers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForImageTextToText.from_config(_config(family, tokenizer))
        for weights in network.parameters():
            torch.nn.init.normal_(weights, std=0.3)  # the library's 0.02 makes all pictures look alike
        answer = torch.randn(len(answers) // 2, network.lm_head.in_features)
    with torch.no_grad():
        unknown, role = tokenizer.convert_tokens_to_ids(["<unk>", "assistant"])
        network.get_input_embeddings().weight[[unknown, role]] = 0  # else most words of a question outweigh the picture
        network.lm_head.weight.zero_()  # no other word is the likeliest: of an answer and its opposite one is above 0
        network.lm_head.weight[-len(answers) :] = 5 * torch.cat([answer, -answer])
    # Each of them ends itself, so that none is cut off.
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>"), *range(len(tokenizer) - len(answers), len(tokenizer))]
    network.generation_config.eos_token_id = ends
    network.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    network.save_pretrained(folder)
    _processor(family, tokenizer).save_pretrained(folder)
    return folder


def _tokenizer(answers: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, VIDEO, "<unk>", *WORDS.split(), "user", "assistant", *answers]
    model = models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=[*SPECIAL, VIDEO],
    )


def _config(family: str, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    ids = dict(zip(SPECIAL, range(len(SPECIAL)), strict=True))
    tokens = {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": len(SPECIAL),
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    vision |= {"fullatt_block_indexes": [1]} if family == "qwen2_5_vl" else {"deepstack_visual_indexes": [0]}
    return AutoConfig.for_model(family, text_config=text, vision_config=vision, **tokens)


def _processor(family: str, tokenizer: Any) -> Any:
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    if family == "qwen2_5_vl":
        videos = Qwen2VLVideoProcessor()
        return Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, videos, chat_template=TEMPLATE)
    pictures = Qwen2VLImageProcessor(patch_size=16)
    return Qwen3VLProcessor(pictures, tokenizer, Qwen3VLVideoProcessor(), chat_template=TEMPLATE)
