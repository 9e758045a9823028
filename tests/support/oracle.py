"""Transformers as the oracle: a random tiny model, our model with its weights, its logits."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
)

from glimt.models.config_json import read_config
from glimt.models.glm4v import Glm4v
from glimt.parallel.mesh import Mesh
from tests.support.token_prompts import IMAGE, Prompt

CLASSES = {
    "glm4v_moe": (Glm4vMoeConfig, Glm4vMoeForConditionalGeneration),
    "glm4v": (Glm4vConfig, Glm4vForConditionalGeneration),
}


@dataclass
class Capture:
    """What a forward pass of transformers did: all of one prompt, batch dim taken away."""

    logits: Tensor
    positions: Tensor  # [3, L]
    rope_delta: int
    inputs: list[Tensor] = field(default_factory=list)  # residual stream entering each layer
    outputs: list[Tensor] = field(default_factory=list)  # and leaving it


class Oracle:
    """A random model of transformers in float32, on eager attention and expert loops."""

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        self.config = config
        config_class, model_class = CLASSES[config["model_type"]]
        known = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
        theirs = config_class(**copy.deepcopy(known))
        for part in (theirs, theirs.text_config, theirs.vision_config):
            part._attn_implementation = part._experts_implementation = "eager"
            part.dtype = torch.float32
        self.model = model_class(theirs).to(torch.float32).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(random_tensor(name, tensor.shape, generator))

    def ours(self, config: dict[str, Any] | None = None) -> Glm4v:
        """Our model with the same weights, built from `config` if one is given."""
        with torch.device("meta"):
            model = Glm4v(read_config(config or self.config), Mesh.single())
        model.load_state_dict(our_weights(self.model.state_dict()), assign=True)
        return model

    def run(self, prompt: Prompt, *, inject: bool = False) -> Capture:
        """Transformers' forward on the whole prompt.

        Its own check of the placeholder count forbids images and videos in one prompt. For those
        (and with `inject`) its encoder and decoder are called one after the other.
        """
        inputs = prompt.transformers_inputs()
        positions, delta = self.positions(prompt)
        capture = Capture(torch.empty(0), positions, delta)
        hooks = [
            hook
            for layer in self.model.model.language_model.layers
            for hook in (
                layer.register_forward_pre_hook(
                    lambda _, args: capture.inputs.append(args[0][0].clone())
                ),
                layer.register_forward_hook(
                    lambda _, args, out: capture.outputs.append(_first(out)[0].clone())
                ),
            )
        ]
        self.model.model.rope_deltas = None
        try:
            if inject or (prompt.image_grids and prompt.video_grids):
                capture.logits = self._run_injected(prompt, positions)
            else:
                capture.logits = self.model(**inputs, use_cache=False).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return capture

    def positions(self, prompt: Prompt) -> tuple[Tensor, int]:
        """M-RoPE positions [3, L] and rope delta."""
        if not prompt.grids:
            return torch.arange(prompt.length).expand(3, -1), 0
        inputs = prompt.transformers_inputs()
        wanted = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        positions, delta = self.model.model.get_rope_index(
            **{name: inputs[name] for name in wanted if name in inputs}
        )
        return positions[:, 0], int(delta)

    def generate(self, prompt: Prompt, steps: int) -> list[int]:
        """Greedy tokens by transformers' own generate()."""
        inputs = prompt.transformers_inputs()
        self.model.model.rope_deltas = None
        self.model.generation_config.eos_token_id = None
        out = self.model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            do_sample=False,
            max_new_tokens=steps,
            pad_token_id=0,
        )
        tokens: list[int] = out[0, prompt.length :].tolist()
        return tokens

    def _run_injected(self, prompt: Prompt, positions: Tensor) -> Tensor:
        inner, inputs = self.model.model, prompt.transformers_inputs()
        ids = inputs["input_ids"]
        embeds = inner.get_input_embeddings()(ids).clone()
        types = inputs["mm_token_type_ids"]
        if prompt.image_grids:
            out = inner.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
            embeds[(ids == IMAGE) & (types == 1)] = torch.cat(list(out.pooler_output))
        if prompt.video_grids:
            out = inner.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
            embeds[(ids == IMAGE) & (types == 2)] = torch.cat(list(out.pooler_output))
        hidden = inner.language_model(
            inputs_embeds=embeds, position_ids=positions[:, None], use_cache=False
        ).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden)[0]
        return logits


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Weights that keep activations near 1, and make every part of the network matter."""
    values = torch.randn(shape, generator=generator)
    if name.endswith("e_score_correction_bias"):
        return values * 0.15
    if name.endswith("embed_tokens.weight"):
        return values
    if name.endswith("position_embedding.weight"):
        return values * 0.5
    if name.endswith(".bias"):
        return values * 0.2
    if len(shape) == 1:
        return 1.0 + 0.2 * values
    if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return values / shape[-1] ** 0.5
    values = values / shape[1:].numel() ** 0.5
    if name.endswith("merger.down_proj.weight"):
        return values * 4.0  # as large as token embeddings, so that norms do not magnify errors
    if name == "lm_head.weight":
        values[TEXT_ROWS:] = 0.0  # never pick a token whose row would need pixels
        return values * 3.0
    return values


TEXT_ROWS = 256

RENAMED = {
    "self_attn.o_proj": "attention.o",
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
    "post_self_attn_layernorm": "norm_1_post",
    "post_mlp_layernorm": "norm_2_post",
    "mlp.down_proj": "mlp.down",
    "mlp.gate_up_proj": "mlp.gate_up",
    "mlp.gate.weight": "moe.router.weight",
    "mlp.gate.e_score_correction_bias": "moe.router.bias",
    "mlp.experts.gate_up_proj": "moe.experts.gate_up",
    "mlp.experts.down_proj": "moe.experts.down",
    "mlp.shared_experts.down_proj": "moe.shared.down",
    "patch_embed.proj": "patch_embed",
    "post_conv_layernorm": "norm_in",
    "embeddings.position_embedding.weight": "position_embedding",
    "post_layernorm": "norm_out",
    "attn.": "attention.",
    "norm1": "norm_1",
    "norm2": "norm_2",
    "merger.post_projection_norm": "merger.norm",
    "merger.down_proj": "merger.down",
    "embed_tokens": "embedding",
}
FUSED = {
    "self_attn.q_proj": ("attention.qkv", ("self_attn.k_proj", "self_attn.v_proj")),
    "mlp.shared_experts.gate_proj": ("moe.shared.gate_up", ("mlp.shared_experts.up_proj",)),
    "mlp.gate_proj": ("mlp.gate_up", ("mlp.up_proj",)),
    "merger.gate_proj": ("merger.gate_up", ("merger.up_proj",)),
}


def our_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transformers' state dict under our names; written apart from `glimt.models.weights`."""
    ours: dict[str, Tensor] = {}
    followers = {name for _, rest in FUSED.values() for name in rest}
    for name, tensor in theirs.items():
        if any(follower + "." in name for follower in followers):
            continue
        target = name.replace("model.language_model.", "").replace("model.visual.", "vision.")
        if lead := next((lead for lead in FUSED if lead + "." in name), None):
            new, rest = FUSED[lead]
            parts = [tensor, *(theirs[name.replace(lead, other)] for other in rest)]
            tensor, target = torch.cat(parts), target.replace(lead, new)
        else:
            old = next((old for old in RENAMED if old in target), "")
            target = target.replace(old, RENAMED[old]) if old else target
        if name.endswith("patch_embed.proj.weight"):
            tensor = tensor.flatten(1)
        if name.endswith("downsample.weight"):
            tensor = tensor.permute(0, 2, 3, 1).flatten(1)
        ours[target] = tensor.clone()
    return ours
