"""WorkMeter: what the steps of an engine cost one device, by arithmetic and not by measurement.

    operations   2 a weight and token; 2 a number of queries, keys and values for each token seen
    read         each weight once a step, of experts as many as are hit; the KV of each row
    written      the KV of each token

Activations are left out: they are small beside the rest.
"""

from dataclasses import dataclass

from glimt.engine.plan import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSizes:
    """One device's share of a model. Weights are numbers of weights, over all layers."""

    weights: int  # that every token meets
    weight_bytes: int
    expert_weights: int  # of one routed expert
    expert_bytes: int
    num_experts: int  # on this device
    num_all_experts: int
    experts_per_token: int
    head_weights: int  # that each token drawn meets
    head_bytes: int
    pair_flops: int  # of one token that sees one token
    kv_token_bytes: int
    vision_weights: int  # that every patch meets
    vision_bytes: int
    vision_pair_flops: int  # of one patch that sees one patch


class WorkMeter:
    """Adds up `flops`, `read_bytes` and `written_bytes` of one device."""

    def __init__(self, sizes: WorkSizes) -> None:
        self.flops = 0.0
        self.read_bytes = 0.0
        self.written_bytes = 0.0
        self._sizes = sizes

    def count(self, plan: StepPlan) -> None:
        """One more step."""
        self._count_images(plan)
        tokens = pairs = seen = drawn = 0
        for work in plan.work:
            count, start = work.num_tokens, work.start
            tokens += count
            pairs += count * start + count * (count + 1) // 2
            seen += start + count
            drawn += work.samples
        if not tokens:
            return
        sizes = self._sizes
        self.flops += 2 * (sizes.weights * tokens + sizes.head_weights * drawn)
        self.flops += sizes.pair_flops * pairs
        self.read_bytes += sizes.weight_bytes + sizes.kv_token_bytes * seen
        self.read_bytes += sizes.head_bytes if drawn else 0
        self.written_bytes += sizes.kv_token_bytes * tokens
        if sizes.num_experts:
            hit = sizes.experts_per_token / sizes.num_all_experts
            self.flops += 2 * sizes.expert_weights * tokens * hit * sizes.num_experts
            # Of experts drawn evenly, so many are drawn at all.
            self.read_bytes += (
                sizes.expert_bytes * sizes.num_experts * (1.0 - (1.0 - hit) ** tokens)
            )

    def _count_images(self, plan: StepPlan) -> None:
        sizes = self._sizes
        for image in plan.encode:
            patches = image.grid_h * image.grid_w
            self.flops += 2 * sizes.vision_weights * patches
            self.flops += sizes.vision_pair_flops * patches**2
        if plan.encode:
            self.read_bytes += sizes.vision_bytes
