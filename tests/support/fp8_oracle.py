"""The FP8 scheme put upon transformers: rounded weights, and hooks that round activations.

Weights: one scale for each output row, max |w| / 448. Activations: one for each token row. Only
the decoder's linears and experts are FP8; routers, norms, the vision tower and the head are not.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from glimt.models.config_json import read_config
from glimt.models.glm4v import Glm4v
from glimt.models.names import fp8_modules
from glimt.parallel.mesh import Mesh
from tests.support.oracle import Oracle, our_weights


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3, float32 scale [..., 1]) of rows."""
    scale = weight.abs().amax(-1, keepdim=True) / 448.0
    return (weight / scale).to(torch.float8_e4m3fn), scale


def round_activation(x: Tensor) -> Tensor:
    """x as the FP8 product sees it."""
    scale = (x.abs().amax(-1, keepdim=True) / 448.0).clamp(min=1.0 / (448.0 * 512.0))
    return (x / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float() * scale


class Fp8Oracle(Oracle):
    """An `Oracle` whose decoder computes as an FP8 checkpoint does, and ours in real FP8."""

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__(config, seed)
        exact = our_weights(self.model.state_dict())
        parsed = read_config(config)
        self.fp8 = fp8_modules(parsed)
        with torch.device("meta"):
            self._ours = Glm4v(parsed, Mesh.single(), self.fp8)
        self._ours.load_state_dict(dict(self._quantized(exact)), assign=True)
        for layer in self.model.model.language_model.layers:
            for name, weight in layer.named_parameters():
                if name.endswith(("_proj.weight", "_proj")):
                    values, scale = quantize_weight(weight)
                    weight.copy_(values.float() * scale)
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.register_forward_pre_hook(lambda _, args: (round_activation(args[0]),))
            if experts := getattr(layer.mlp, "experts", None):
                experts.forward = lambda *args, experts=experts: run_experts(experts, *args)

    def ours(self, config: dict[str, Any] | None = None) -> Glm4v:
        """Our model with FP8 weights."""
        return self._ours

    def _quantized(self, exact: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
        out: list[tuple[str, Tensor]] = []
        for name, tensor in exact.items():
            module = name.removesuffix(".weight")
            if name.endswith(("experts.gate_up", "experts.down")):
                module = name.rpartition(".")[0]
            if module not in self.fp8:
                out.append((name, tensor))
                continue
            values, scale = quantize_weight(tensor)
            out += [(name, values), (name + "_scale", scale[..., 0])]
        return out


def run_experts(experts: Any, h: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Transformers' loop over experts, with both inputs rounded."""
    out, rounded = torch.zeros_like(h), round_activation(h)
    for expert in ids.unique().tolist():
        token, slot = torch.where(ids == expert)
        gate, up = functional.linear(rounded[token], experts.gate_up_proj[expert]).chunk(2, -1)
        inner = round_activation(functional.silu(gate) * up)
        y = functional.linear(inner, experts.down_proj[expert])
        out.index_add_(0, token, y * weights[token, slot, None])
    return out
