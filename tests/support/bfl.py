"""FLUX.1 with its layers fused as Black Forest Labs publishes them, in plain torch: what a LoRA of theirs means."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, rms_norm, scaled_dot_product_attention, silu

Update = tuple[Tensor, Tensor, Tensor | float, float]
"""A, B, the bias beside B, the scale."""


class Bfl:
    """The model of a diffusers transformer, and updates of its linear layers by their published names."""

    def __init__(self, model: FluxTransformer2DModel, updates: Mapping[str, Update]) -> None:
        self.weights, self.updates, self.config = published(model), updates, model.config

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        if name not in self.updates:
            return y
        a, b, bias, scale = self.updates[name]
        return y + scale * (x @ a.T @ b.T + bias)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.out_layer", silu(self.linear(f"{name}.in_layer", x)))

    def heads(self, name: str, qkv: Tensor) -> list[Tensor]:
        size = self.config.attention_head_dim
        q, k, v = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in qkv.chunk(3, -1))
        q, k = (rms_norm(x, (size,), self.weights[f"{name}.{of}"], 1e-6) for x, of in ((q, "q"), (k, "k")))
        return [q, k, v]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
        axes = zip(self.config.axes_dims_rope, ids.double().unbind(-1), strict=True)
        angles = torch.cat([at[:, None] * 10000.0 ** -(torch.arange(0, n, 2).double() / n) for n, at in axes], -1)
        turn = torch.polar(torch.ones_like(angles), angles).to(q.dtype.to_complex())
        q, k = (torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2) for x in (q, k))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)

    def double(self, block: str, streams: list[Tensor], vec: Tensor, ids: Tensor) -> list[Tensor]:
        names = ("txt", "img")
        mods = [self.linear(f"{block}.{s}_mod.lin", silu(vec))[:, None].chunk(6, -1) for s in names]
        parts = [
            self.heads(f"{block}.{s}_attn", self.linear(f"{block}.{s}_attn.qkv", modulated(x, *mod[:2])))
            for s, x, mod in zip(names, streams, mods, strict=True)
        ]
        attended = self.attend(*(torch.cat(pair, 2) for pair in zip(*parts, strict=True)), ids)
        split = torch.split(attended, [x.shape[1] for x in streams], 1)
        out = []
        for s, x, mod, got in zip(names, streams, mods, split, strict=True):
            y = x + mod[2] * self.linear(f"{block}.{s}_attn.proj", got)
            hidden = gelu(self.linear(f"{block}.{s}_mlp.0", modulated(y, *mod[3:5])), approximate="tanh")
            out.append(y + mod[5] * self.linear(f"{block}.{s}_mlp.2", hidden))
        return out

    def single(self, block: str, x: Tensor, vec: Tensor, ids: Tensor) -> Tensor:
        shift, scale, gate = self.linear(f"{block}.modulation.lin", silu(vec))[:, None].chunk(3, -1)
        width = x.shape[-1]
        qkv, hidden = torch.split(
            self.linear(f"{block}.linear1", modulated(x, shift, scale)), [3 * width, 4 * width], -1
        )
        attended = self.attend(*self.heads(block, qkv), ids)
        return x + gate * self.linear(f"{block}.linear2", torch.cat([attended, gelu(hidden, approximate="tanh")], -1))

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the diffusers transformer returns for these arguments."""
        vec = self.mlp("time_in", waves(inputs["timestep"])) + self.mlp("vector_in", inputs["pooled_projections"])
        vec = vec + self.mlp("guidance_in", waves(inputs["guidance"]))
        ids = torch.cat([inputs["txt_ids"], inputs["img_ids"]])
        streams = [
            self.linear("txt_in", inputs["encoder_hidden_states"]),
            self.linear("img_in", inputs["hidden_states"]),
        ]
        for at in range(self.config.num_layers):
            streams = self.double(f"double_blocks.{at}", streams, vec, ids)
        x = torch.cat(streams, 1)
        for at in range(self.config.num_single_layers):
            x = self.single(f"single_blocks.{at}", x, vec, ids)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", silu(vec))[:, None].chunk(2, -1)
        return self.linear("final_layer.linear", modulated(x[:, streams[0].shape[1] :], shift, scale))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (1 + scale) * layer_norm(x, x.shape[-1:], eps=1e-6) + shift


def waves(at: Tensor) -> Tensor:
    """In float32 for any dtype, as published."""
    angles = 1000 * at.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    return torch.cat([angles.cos(), angles.sin()], -1).to(at)


def published(model: FluxTransformer2DModel) -> dict[str, Tensor]:
    """The weights of a diffusers transformer under the names, and in the shapes, of Black Forest Labs."""
    own, made = model.state_dict(), {}
    embedders = {"time_in": "timestep", "guidance_in": "guidance", "vector_in": "text"}
    names = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
    for theirs, ours in embedders.items():
        names[f"{theirs}.in_layer"] = f"time_text_embed.{ours}_embedder.linear_1"
        names[f"{theirs}.out_layer"] = f"time_text_embed.{ours}_embedder.linear_2"
    for at in range(model.config.num_layers):
        to, of = f"double_blocks.{at}", f"transformer_blocks.{at}"
        names |= {f"{to}.img_attn.proj": f"{of}.attn.to_out.0", f"{to}.txt_attn.proj": f"{of}.attn.to_add_out"}
        for s, end in (("img", ""), ("txt", "_context")):
            names |= {f"{to}.{s}_mod.lin": f"{of}.norm1{end}.linear", f"{to}.{s}_mlp.2": f"{of}.ff{end}.net.2"}
            names[f"{to}.{s}_mlp.0"] = f"{of}.ff{end}.net.0.proj"
            parts = [f"attn.to_{x}" if s == "img" else f"attn.add_{x}_proj" for x in "qkv"]
            made |= fused(own, f"{to}.{s}_attn.qkv", [f"{of}.{part}" for part in parts])
            added = "added_" if s == "txt" else ""
            made |= {f"{to}.{s}_attn.{x}": own[f"{of}.attn.norm_{added}{x}.weight"] for x in "qk"}
    for at in range(model.config.num_single_layers):
        to, of = f"single_blocks.{at}", f"single_transformer_blocks.{at}"
        names |= {f"{to}.modulation.lin": f"{of}.norm.linear", f"{to}.linear2": f"{of}.proj_out"}
        made |= fused(own, f"{to}.linear1", [*(f"{of}.attn.to_{x}" for x in "qkv"), f"{of}.proj_mlp"])
        made |= {f"{to}.{x}": own[f"{of}.attn.norm_{x}.weight"] for x in "qk"}
    for what in ("weight", "bias"):
        made |= {f"{theirs}.{what}": own[f"{ours}.{what}"] for theirs, ours in names.items()}
        scale, shift = own[f"norm_out.linear.{what}"].chunk(2)
        made[f"final_layer.adaLN_modulation.1.{what}"] = torch.cat([shift, scale])
    return made


def fused(own: Mapping[str, Tensor], name: str, layers: list[str]) -> dict[str, Tensor]:
    return {f"{name}.{what}": torch.cat([own[f"{layer}.{what}"] for layer in layers]) for what in ("weight", "bias")}
