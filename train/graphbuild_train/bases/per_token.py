"""FLUX.1 with a timestep for each part of a sequence: its blocks, with modulations that differ along the tokens.

diffusers' FLUX has one timestep per sample. Here the sequence consists of parts, the text first, and `timestep` (as
`guidance` and `pooled_projections`) has the entries of all samples for the first part, then for the second, and so on.
Weights and names stay; a call without `lengths` does what diffusers does. The classes are named like those they
replace, because compiling, sharding and offloading find blocks by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models import normalization
from diffusers.models.transformers import transformer_flux as stock
from torch import Tensor


def time_by_part(transformer: Any) -> None:
    """Let a `FluxTransformer2DModel` take times of parts, in place."""
    for block in transformer.transformer_blocks:
        block.__class__ = FluxTransformerBlock
    for block in transformer.single_transformer_blocks:
        block.__class__ = FluxSingleTransformerBlock
    transformer.norm_out.__class__ = AdaLayerNormContinuous


def parts(transformer: Any, lengths: Sequence[int]) -> dict[str, Any]:
    """The `joint_attention_kwargs` of a call whose image tokens are parts of these lengths."""
    transformer.norm_out.lengths = list(lengths)  # the only block that is not given them
    return {"lengths": list(lengths)}


class FluxTransformerBlock(stock.FluxTransformerBlock):
    """A block with separate streams for text and image; the text is one part."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor,
        image_rotary_emb: Any = None, joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        lengths, others = _taken(joint_attention_kwargs)
        image, text = hidden_states, encoder_hidden_states
        if lengths is None:
            return super().forward(image, text, temb, image_rotary_emb, others)
        first, rest = temb[: len(text)], temb[len(text) :]
        shift, scale, gate, shift_ff, scale_ff, gate_ff = _modulations(self.norm1, rest, len(lengths), 6)
        shown_text, text_gate, text_shift, text_scale, text_gate_ff = self.norm1_context(text, emb=first)
        shown = _scaled(self.norm1.norm(image), lengths, scale, shift)
        attended, attended_text = self.attn(
            hidden_states=shown, encoder_hidden_states=shown_text, image_rotary_emb=image_rotary_emb, **others
        )
        image = image + _gated(attended, lengths, gate)
        image = image + _gated(self.ff(_scaled(self.norm2(image), lengths, scale_ff, shift_ff)), lengths, gate_ff)
        text = text + text_gate[:, None] * attended_text
        shown_text = self.norm2_context(text) * (1 + text_scale[:, None]) + text_shift[:, None]
        return text + text_gate_ff[:, None] * self.ff_context(shown_text), image


class FluxSingleTransformerBlock(stock.FluxSingleTransformerBlock):
    """A block with one stream, of the text and then the image."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor,
        image_rotary_emb: Any = None, joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        lengths, others = _taken(joint_attention_kwargs)
        if lengths is None:
            return super().forward(hidden_states, encoder_hidden_states, temb, image_rotary_emb, others)
        words = encoder_hidden_states.shape[1]
        lengths = [words, *lengths]
        both = torch.cat([encoder_hidden_states, hidden_states], 1)
        shift, scale, gate = _modulations(self.norm, temb, len(lengths), 3)
        shown = _scaled(self.norm.norm(both), lengths, scale, shift)
        attended = self.attn(hidden_states=shown, image_rotary_emb=image_rotary_emb, **others)
        fed = self.act_mlp(self.proj_mlp(shown))
        both = both + _gated(self.proj_out(torch.cat([attended, fed], 2)), lengths, gate)
        return both[:, :words], both[:, words:]


class AdaLayerNormContinuous(normalization.AdaLayerNormContinuous):
    """The norm before the last layer, of image tokens only."""

    lengths: Sequence[int]

    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        if len(conditioning_embedding) == len(x):
            return super().forward(x, conditioning_embedding)
        scale, shift = _modulations(self, conditioning_embedding[len(x) :], len(self.lengths), 2)
        return _scaled(self.norm(x), self.lengths, scale, shift)


def _taken(given: dict[str, Any] | None) -> tuple[Sequence[int] | None, dict[str, Any]]:
    others = dict(given or {})
    return others.pop("lengths", None), others


def _modulations(norm: Any, embedding: Tensor, count: int, number: int) -> tuple[Tensor, ...]:
    """`number` tensors of count x B x 1 x D, from an embedding (count B) x D."""
    made: Tensor = norm.linear(norm.silu(embedding))
    return made.reshape(count, -1, 1, made.shape[-1]).chunk(number, -1)


def _scaled(x: Tensor, lengths: Sequence[int], scale: Tensor, shift: Tensor) -> Tensor:
    split = zip(torch.split(x, list(lengths), 1), scale, shift, strict=True)
    return torch.cat([part * (1 + factor) + added for part, factor, added in split], 1)


def _gated(x: Tensor, lengths: Sequence[int], gate: Tensor) -> Tensor:
    """B x S x D times its part's gate. Part by part, so that no gate as large as the sequence is kept for backward."""
    return torch.cat([part * factor for part, factor in zip(torch.split(x, list(lengths), 1), gate, strict=True)], 1)
