"""One device's share of a model in numbers, for the estimates of what steps cost."""

import math
from collections import Counter

from glimt.engine.work_meter import WorkSizes
from glimt.models.glm4v import Glm4v
from glimt.runner.kv_cache import KvLayout


def work_sizes(model: Glm4v, layout: KvLayout) -> WorkSizes:
    """Counted from the parameters that this device holds, so that every split is accounted for."""
    weights: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    local_experts = 0
    for name, parameter in model.named_parameters():
        kind = _kind(name)
        weights[kind] += parameter.numel()
        num_bytes[kind] += parameter.numel() * parameter.dtype.itemsize
        if name.endswith("experts.gate_up"):
            local_experts = parameter.shape[0]
    text, vision = model.config.text, model.config.vision
    local_heads = max(1, text.num_heads // model.mesh.tp_size)
    vision_heads = max(1, vision.num_heads // model.mesh.tower.tp_size)
    experts = max(1, local_experts)
    merged = math.ceil(weights["merger"] / vision.merge_size**2)  # once for so many patches
    return WorkSizes(
        weights=weights["layers"],
        weight_bytes=num_bytes["layers"],
        expert_weights=weights["experts"] // experts,
        expert_bytes=num_bytes["experts"] // experts,
        num_experts=local_experts,
        num_all_experts=max(1, text.moe.num_experts if text.moe is not None else 1),
        experts_per_token=text.moe.num_experts_per_token if text.moe is not None else 0,
        head_weights=weights["lm_head"],
        head_bytes=num_bytes["lm_head"],
        pair_flops=4 * local_heads * text.head_dim * text.num_layers,
        kv_token_bytes=layout.token_bytes,
        vision_weights=weights["vision"] + merged,
        vision_bytes=num_bytes["vision"] + num_bytes["merger"],
        vision_pair_flops=4 * vision_heads * vision.head_dim * vision.depth,
    )


def _kind(name: str) -> str:
    """embedding tables are looked up, not multiplied by: `table`."""
    if ".experts." in name:
        return "experts"
    if name.startswith(("vision.merger.", "vision.downsample.")):
        return "merger"
    first = name.partition(".")[0]
    if name in ("embedding.weight", "vision.position_embedding"):
        return "table"
    return first if first in ("vision", "lm_head") else "layers"
