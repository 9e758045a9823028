"""Mixture of experts: a sigmoid router, routed experts and a shared one.

Letters: T tokens, D width, I expert width, F = 2I, E experts, K experts of a token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glimt import kernels
from glimt.experts.placement import places_of
from glimt.kernels import Delta, Fp8Mlp, QuantizedRows
from glimt.layers.dispatch import shared_experts
from glimt.layers.linear import FP8, Mlp, below, parameter, plain
from glimt.layers.norm import RmsNorm
from glimt.parallel.exchange import AS_THEY_ARE, Exchange
from glimt.parallel.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Routing:
    """How tokens choose experts; see `kernels.route`."""

    num_experts: int
    num_experts_per_token: int
    num_groups: int
    num_groups_per_token: int
    norm_topk_prob: bool
    scale: float


class Router(nn.Module):
    """Chooses experts and weighs them, in float32. Every rank holds all of it.

    One step after the other: programs of a kernel count in `arrived_T` who has come, for steps
    of one token.
    """

    def __init__(self, hidden_size: int, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self._choice: dict[str, Any] = {  # as `kernels.route` is told
            "num_experts_per_token": routing.num_experts_per_token,
            "num_groups": routing.num_groups,
            "num_groups_per_token": routing.num_groups_per_token,
            "norm_topk_prob": routing.norm_topk_prob,
            "scale": routing.scale,
        }
        self.weight = parameter(routing.num_experts, hidden_size)
        self.bias = parameter(routing.num_experts, dtype=torch.float32)
        # Real also where parameters are still meta, as `Places` has it.
        arrived_T = torch.zeros(1, dtype=torch.int32, device="cpu")
        self.arrived_T: Tensor
        self.register_buffer("arrived_T", arrived_T, persistent=False)

    def forward(self, x_TD: Tensor, first_expert: int = 0) -> tuple[Tensor, Tensor]:
        """(weights float32 [T, K], experts int64 [T, K], counted from `first_expert`)."""
        return kernels.route(
            x_TD,
            self.weight,
            self.bias,
            **self._choice,
            first_expert=first_expert,
        )

    def of_sum(
        self, norm: RmsNorm, x_TD: Tensor, delta_TD: Delta
    ) -> tuple[Tensor | QuantizedRows, Tensor, tuple[Tensor, Tensor]] | None:
        """(norm of x + delta, x + delta, what `forward` gives for it), where one kernel does it."""
        done = kernels.norm_and_route(
            *(x_TD, delta_TD, norm.weight, norm.eps, self.weight, self.bias, self.arrived_T),
            quantizes=norm.quantizes,
            **self._choice,
        )
        if done is None:
            return None
        rows, sum_TD, chosen = done
        return rows if norm.quantizes else rows.x_TI, sum_TD, chosen


class Places(nn.Module):
    """Where experts lie, if not in order: place e of all ranks together is not expert e's then."""

    def __init__(self, mesh: Mesh, layer: int) -> None:
        super().__init__()
        self.place_X: Tensor | None  # [C · E]: by row modulo C, then by expert
        self.register_buffer("place_X", None, persistent=False)
        self.num_experts = 0
        if mesh.placement is not None:
            self.num_experts = mesh.placement.num_experts
            table_CE = places_of(mesh.placement.layers[layer], self.num_experts)
            # Neither a parameter nor stored, so it is real also where parameters are still meta.
            self.place_X = torch.tensor(table_CE.ravel(), device="cpu")

    def forward(self, experts_TK: Tensor) -> Tensor:
        """int64 [T, K]: the place of each expert; the copies of one take turns, row by row."""
        place_X = self.place_X
        if place_X is None:
            return experts_TK
        cycle = place_X.shape[0] // self.num_experts
        if cycle > 1:
            turn_T1 = torch.arange(len(experts_TK), device=experts_TK.device)[:, None] % cycle
            experts_TK = experts_TK + turn_T1 * self.num_experts
        return place_X[experts_TK]


class Experts(nn.Module):
    """gate_up [E, F, D] and down [E, D, I], with float32 scales [E, F] and [E, D] iff FP8.

    Under tensor parallelism every rank holds a share of every expert's width; under expert
    parallelism whole experts, and tokens of other ranks' experts get zeros.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        *,
        mesh: Mesh,
        fp8: bool = False,
    ) -> None:
        super().__init__()
        width, count = intermediate_size, num_experts
        if mesh.ep_size > 1:
            count = mesh.ep_share(num_experts)
        else:
            width = mesh.tp_share(intermediate_size, "moe_intermediate_size")
        self.num_places = count
        self.first_place = count * mesh.ep_rank
        dtype = FP8 if fp8 else None
        self.gate_up = parameter(count, 2 * width, hidden_size, dtype=dtype)
        self.down = parameter(count, hidden_size, width, dtype=dtype)
        scale = torch.float32
        self.gate_up_scale = parameter(count, 2 * width, dtype=scale) if fp8 else None
        self.down_scale = parameter(count, hidden_size, dtype=scale) if fp8 else None

    def fp8(self) -> Fp8Mlp | None:
        """All of it, if it is FP8."""
        if self.gate_up_scale is None or self.down_scale is None:
            return None
        return Fp8Mlp(self.gate_up, self.gate_up_scale, self.down, self.down_scale)

    def forward(
        self,
        x: Tensor | QuantizedRows,
        weights_TK: Tensor,
        experts_TK: Tensor,
        shared: Fp8Mlp | None = None,
        *,
        first_place: int = 0,
        defers: bool = False,
    ) -> Delta:
        """[T, D]: each token's weighted sum over those of its experts that are here.

        `experts_TK` are places counted over all ranks, from `first_place` on: the experts' numbers,
        where they lie in order. An FP8 expert `shared` by all tokens may be added to FP8 experts;
        with `defers` a norm may be left to carry out that sum.
        """
        if self.first_place != first_place:
            experts_TK = experts_TK - (self.first_place - first_place)
        fp8 = self.fp8()
        if fp8 is not None:
            if shared is not None:
                return kernels.fp8_moe(x, weights_TK, experts_TK, fp8, shared, defers=defers)
            return kernels.fp8_grouped_experts(x, weights_TK, experts_TK, *fp8)
        return kernels.grouped_experts(plain(x), weights_TK, experts_TK, self.gate_up, self.down)


class Moe(nn.Module):
    """y = Σ w_e · Expert_e(x) + Shared(x); this rank's part of it, to be summed over tp."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        shared_intermediate_size: int,
        routing: Routing,
        *,
        mesh: Mesh,
        layer: int = 0,
        fp8: frozenset[str] = frozenset(),
        defers: bool = False,
    ) -> None:
        """`layer`: its number, by which experts may be placed. `defers`: what follows is a norm
        that may carry out the output's sum.
        """
        super().__init__()
        self.defers = defers
        self.mesh = mesh
        self.router = Router(hidden_size, routing)
        self.experts = Experts(
            hidden_size,
            intermediate_size,
            routing.num_experts,
            mesh=mesh,
            fp8="experts" in fp8,
        )
        shared_width = mesh.tp_share(shared_intermediate_size, "shared expert width")
        self.shared = Mlp(hidden_size, shared_width, fp8=below(fp8, "shared"))
        self.places = Places(mesh, layer)
        self.choices: Tensor | None
        self.one: Tensor
        for name in ("choices", "one"):
            self.register_buffer(name, None, persistent=False)

    def count_choices(self, device: torch.device) -> None:
        """From now on, count how many tokens choose each expert, in `choices` [E]."""
        count = self.router.routing.num_experts
        self.choices = torch.zeros(count, dtype=torch.int64, device=device)
        self.one = torch.ones(1, dtype=torch.int64, device=device)

    def forward(
        self,
        x: Tensor | QuantizedRows,
        exchange: Exchange = AS_THEY_ARE,
        chosen: tuple[Tensor, Tensor] | None = None,
    ) -> Delta:
        """[T, D] -> [T, D]. Every rank of a replica sees every token of it; what is exchanged with
        other replicas that share the experts, `exchange` says. `chosen`: the router's result, if
        it is there already.
        """
        routed, shared = self.experts.fp8(), self.shared.fp8()
        # The router counts from this rank's first expert if nobody else asks for their numbers.
        is_own = self.mesh.dp_size == 1 and self.choices is None and self.mesh.placement is None
        is_own = is_own and chosen is None
        first = self.experts.first_place if is_own else 0
        weights_TK, experts_TK = chosen or self.router(plain(x), first)
        if self.choices is not None:
            chosen_P = experts_TK.flatten()
            self.choices.scatter_add_(0, chosen_P, self.one.expand_as(chosen_P))
        experts_TK = self.places(experts_TK)
        if self.mesh.dp_size == 1 and shared is not None and routed is not None:
            y_TD: Delta = self.experts(
                x, weights_TK, experts_TK, shared, first_place=first, defers=self.defers
            )
            return y_TD
        if self.mesh.dp_size == 1 or self.mesh.beside is None:
            shared_TD: Tensor = self.shared(x)
            return self._routed(x, weights_TK, experts_TK, exchange, first) + shared_TD
        # While rows travel, which waits for other GPUs.
        joined = self.mesh.beside.begin(lambda: self.shared(x))
        routed_TD = self._routed(x, weights_TK, experts_TK, exchange)
        return routed_TD + joined()

    def take_part(self, exchange: Exchange) -> None:
        """Compute this rank's experts for other replicas, in a step without tokens of its own."""
        weight_ED = self.router.weight
        x_TD = weight_ED.new_empty(0, weight_ED.shape[1])
        weights_TK = self.router.bias.new_empty(0, self.router.routing.num_experts_per_token)
        self._routed(x_TD, weights_TK, torch.empty_like(weights_TK, dtype=torch.int64), exchange)

    def _routed(
        self,
        x: Tensor | QuantizedRows,
        weights_TK: Tensor,
        places_TK: Tensor,
        exchange: Exchange,
        first_place: int = 0,
    ) -> Tensor:
        """[T, D]: this rank's part of the routed experts' sum, of the replicas that share them."""
        if self.mesh.dp_size == 1:
            routed_TD: Tensor = self.experts(x, weights_TK, places_TK, first_place=first_place)
            return routed_TD
        return shared_experts(
            self.mesh,
            self.experts.num_places,
            self.experts,
            x,
            weights_TK,
            places_TK,
            exchange,
            is_fp8=self.experts.fp8() is not None,
        )
