"""The text decoder's layers.

MoE models (plain pre-norm):

    x = x + Attention(rms(x; norm_1))
    x = x + Ffn(rms(x; norm_2))

dense models (sandwich): the branches are normed once more before they are added:

    x = x + rms(Attention(rms(x; norm_1)); norm_1_post)
    x = x + rms(Mlp(rms(x; norm_2)); norm_2_post)

The add is carried out by the norm that follows it, so a layer takes and gives the residual stream
x and the branch `delta` that is still to be added. In MoE models that norm also sums the branch
over the tp axis, so there `delta` is this rank's part. Letters: T tokens, D width.
"""

from torch import Tensor, nn

from glimt import kernels
from glimt.kernels import Delta, QuantizedRows
from glimt.layers.attention import Attention, LayerCache, Step
from glimt.layers.linear import Mlp, below
from glimt.layers.moe import Moe, Routing
from glimt.layers.norm import RmsNorm
from glimt.layers.rope import Angles
from glimt.models.config import MoeConfig, RopeConfig, TextConfig
from glimt.parallel.mesh import Mesh

# Those of a layer's linears that take the second norm's rows.
_FP8_AFTER_NORM_2 = ("mlp.gate_up", "moe.experts", "moe.shared.gate_up")


class DecoderLayer(nn.Module):
    """Attention and feed-forward (dense `mlp`, or `moe`) with their norms."""

    def __init__(
        self, config: TextConfig, index: int, mesh: Mesh, fp8: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()
        self.mesh = mesh
        self.norm_mesh = norm_mesh(config, mesh)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.norm_1 = RmsNorm(size, eps, quantizes="attention.qkv" in fp8)
        self.norm_2 = RmsNorm(size, eps, quantizes=not fp8.isdisjoint(_FP8_AFTER_NORM_2))
        self.norm_1_post = _post_norm(config)
        self.norm_2_post = _post_norm(config)
        defers = not config.sandwich  # nothing but a sum over ranks is between branch and norm
        self.attention = Attention(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            bias=config.attention_bias,
            mesh=mesh,
            fp8=below(fp8, "attention"),
            defers=defers,
        )
        self.is_moe = config.is_moe_layer(index)
        if config.moe is not None and self.is_moe:
            self.moe = _moe(config, config.moe, mesh, index, below(fp8, "moe"), defers)
        else:
            width = mesh.tp_share(config.intermediate_size, "intermediate_size")
            self.mlp = Mlp(config.hidden_size, width, fp8=below(fp8, "mlp"))

    def forward(
        self,
        x_TD: Tensor,
        delta_TD: Delta | None,
        step: Step,
        angles: Angles,
        cache: LayerCache,
    ) -> tuple[Tensor, Delta]:
        """(x, delta) -> (x, delta): what is summed so far, and the branch to add to it next."""
        h, x_TD = self.norm_1.add_parts(x_TD, delta_TD, self.norm_mesh)
        delta_TD = self.attention(h, step, angles, cache)
        if self.norm_1_post is not None:
            delta_TD = self.norm_1_post(self.mesh.tp_sum(kernels.settled(delta_TD)))
        h, x_TD, chosen = self._second_norm(x_TD, delta_TD)
        delta_TD = self.moe(h, step.exchange, chosen) if self.is_moe else self.mlp(h)
        if self.norm_2_post is not None:
            delta_TD = self.norm_2_post(self.mesh.tp_sum(kernels.settled(delta_TD)))
        return x_TD, delta_TD

    def _second_norm(
        self, x_TD: Tensor, delta_TD: Delta
    ) -> tuple[Tensor | QuantizedRows, Tensor, tuple[Tensor, Tensor] | None]:
        """(h, x, the experts chosen by h if its kernel chose them): norm_2 of x + delta."""
        if self.is_moe and self.norm_mesh.tp_size == 1:
            done = self.moe.router.of_sum(self.norm_2, x_TD, delta_TD)
            if done is not None:
                return done
        return *self.norm_2.add_parts(x_TD, delta_TD, self.norm_mesh), None


def norm_mesh(config: TextConfig, mesh: Mesh) -> Mesh:
    """Over which the norms sum what they add: branches that are normed before are summed then."""
    return Mesh.single() if config.sandwich else mesh


def text_angles(rope: RopeConfig, positions_3T: Tensor) -> Angles:
    """The step's rotary angles, the same for all layers."""
    return Angles.of_text(
        positions_3T,
        theta=rope.theta,
        rotary_dim=rope.rotary_dim,
        sections=rope.sections,
        interleaved=rope.interleaved,
    )


def _post_norm(config: TextConfig) -> RmsNorm | None:
    return RmsNorm(config.hidden_size, config.rms_norm_eps) if config.sandwich else None


def _moe(
    config: TextConfig, moe: MoeConfig, mesh: Mesh, layer: int, fp8: frozenset[str], defers: bool
) -> Moe:
    routing = Routing(
        num_experts=moe.num_experts,
        num_experts_per_token=moe.num_experts_per_token,
        num_groups=moe.num_groups,
        num_groups_per_token=moe.num_groups_per_token,
        norm_topk_prob=moe.norm_topk_prob,
        scale=moe.routed_scaling_factor,
    )
    return Moe(
        config.hidden_size,
        moe.intermediate_size,
        moe.shared_intermediate_size,
        routing,
        mesh=mesh,
        layer=layer,
        fp8=fp8,
        defers=defers,
    )
