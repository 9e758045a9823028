"""The roofline: how long a decode step, a prompt and an image take under a layout.

    step     (weights read + context x KV per token) / bandwidth + all-reduces (+ launches and more
             in each layer; shares of matrices, and FP8 keys and values, are read less fast)
    prompt   products at their rates; routed experts at the slower of products and reading
    shared   copies that share experts step together: each has its own requests, reads the experts
             that those of all touch, and exchanges rows in each layer with experts
    image    the vision tower's products and attention, in 16 bits

Each time comes as a floor (the device's own limits) or as expected (what the engine makes of
them). Formulas and the hand-calculated tables that tests hold them to: docs/planning.md.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from glimt.models.config import ModelConfig
from glimt.planning.constants import Constants, Gpu
from glimt.planning.layout import Layout
from glimt.planning.links import (
    ACTIVATION_BYTES,
    all_reduce_floor_s,
    all_reduce_s,
    exchange_s,
    large_all_reduce_s,
    row_bytes,
)
from glimt.planning.routing import distinct_experts, fullest_gpu
from glimt.planning.shares import GpuShare, gpu_share, kv_token_bytes


@dataclass(frozen=True)
class Speed:
    """A model on a layout. `fp8`: weights are FP8. `floor`: limits in place of expectations."""

    config: ModelConfig
    layout: Layout
    gpu: Gpu
    constants: Constants
    fp8: bool
    fp8_kv: bool
    floor: bool = False

    @cached_property
    def share(self) -> GpuShare:
        """The fullest GPU's weights."""
        return gpu_share(self.config, self.layout, fp8=self.fp8)

    def touched_experts(self, num_tokens: float) -> float:
        """Experts of a layer (or parts of them) that the fullest GPU reads for so many tokens."""
        moe = self.config.text.moe
        if moe is None:
            return 0.0
        distinct = distinct_experts(num_tokens, moe.num_experts, moe.num_experts_per_token)
        return fullest_gpu(distinct, moe.num_experts, self.layout.ep)

    def step_bytes(self, batch: float, context: float, elsewhere: float = 0.0) -> float:
        """What a GPU reads in a decode step of `batch` requests."""
        return self._weight_bytes(batch + elsewhere) + self._kv_bytes(batch * context)

    def _weight_bytes(self, num_tokens: float) -> float:
        return self.share.read_bytes(self.touched_experts(num_tokens))

    def _kv_bytes(self, num_tokens: float) -> float:
        return num_tokens * kv_token_bytes(self.config.text, self.layout.tp, fp8=self.fp8_kv)

    def step_s(self, batch: float, context: float, elsewhere: float = 0.0) -> float:
        """A decode step of a copy: `batch` requests with `context` tokens each, and `elsewhere` in
        the copies that share its experts, in none of them more than here."""
        engine = self.constants.engine
        if self.floor:
            reading_s = self.step_bytes(batch, context, elsewhere) / self.gpu.bandwidth
            return reading_s + self._step_links_s(batch)
        of_weights = engine.decode_efficiency
        of_weights *= math.pow(engine.split_efficiency, math.log2(self.layout.tp))
        of_kv = engine.fp8_kv_efficiency if self.fp8_kv else engine.decode_efficiency
        num_bytes = self._weight_bytes(batch + elsewhere) / of_weights
        num_bytes += self._kv_bytes(batch * context) / of_kv
        beside_s = engine.launches_per_layer * engine.launch_s + engine.layer_s
        layers_s = self.config.text.num_layers * beside_s
        return num_bytes / self.gpu.bandwidth + layers_s + self._step_links_s(batch)

    def _step_links_s(self, batch: float) -> float:
        """Two sums over all GPUs of a copy in each layer, whether experts are split or spread; and
        what copies exchange that share experts."""
        text, layout = self.config.text, self.layout
        cost = all_reduce_floor_s if self.floor else all_reduce_s
        sum_s = cost(
            batch * text.hidden_size * ACTIVATION_BYTES,
            layout.tp,
            self.constants.collectives,
            crosses_nodes=layout.tp_crosses_nodes,
        )
        return 2 * text.num_layers * sum_s + self._exchanges_s(batch)

    def _exchanges_s(self, num_rows: float) -> float:
        """In all layers of a step in which the fullest copy has so many rows."""
        text, moe = self.config.text, self.config.text.moe
        if moe is None:
            return 0.0
        there = row_bytes(text.hidden_size, moe.num_experts_per_token, fp8=self.fp8)
        sizes = there, text.hidden_size * ACTIVATION_BYTES
        return self.share.num_moe_layers * exchange_s(
            num_rows,
            self.layout.sharing,
            sizes,
            self.gpu,
            self.constants.collectives,
            num_far=self.layout.sharing_far,
            floor=self.floor,
        )

    # ------------------------------------------------------------------------------------ prompts

    def prompt_s(
        self, num_tokens: float, chunk: int, together: float = 1, elsewhere: float = 0
    ) -> float:
        """A prompt of so many tokens, images included, in chunks of `chunk` tokens at most; or
        `together` such prompts in one step, which they must fit. `elsewhere`: as in `step_s`."""
        seconds, done = 0.0, 0.0
        while done < num_tokens:
            tokens = min(float(chunk), num_tokens - done)
            seconds += self._chunk_s(tokens, done, together, elsewhere)
            done += tokens
        return seconds

    def _chunk_s(self, tokens: float, before: float, together: float, elsewhere: float) -> float:
        products_s = self._products_s(together * tokens, elsewhere * tokens)
        attention = 4 * self._query_width() * self.config.text.num_layers / self.layout.tp
        pairs = together * (tokens * before + tokens * tokens / 2)
        attention_s = attention * pairs / self.gpu.attention
        seconds, links_s = products_s + attention_s, self._chunk_links_s(together * tokens)
        if self.floor:
            return seconds + links_s
        engine = self.constants.engine
        least_s = self.config.text.num_layers * engine.prompt_layer_s
        return max(seconds / engine.prefill_efficiency + links_s, least_s)

    def _products_s(self, tokens: float, elsewhere: float) -> float:
        """Of one chunk: dense products by their rate, experts by rate or reading, the head once."""
        share, moe = self.share, self.config.text.moe
        rate = self.gpu.fp8 if self.fp8 else self.gpu.bf16
        # The router's weights have 2 bytes an element (and 4 bytes a bias).
        dense = share.attention.elements + share.dense.elements + share.shared.elements
        dense_s = 2 * tokens * (dense + share.router_bytes / 2) / rate
        head_s = share.head_bytes / self.gpu.bandwidth
        if moe is None:
            return dense_s + head_s
        whole = share.expert.elements * self.layout.expert_tp * share.num_moe_layers
        everywhere, num_gpus = tokens + elsewhere, self.layout.tp * self.layout.sharing
        routed_s = 2 * everywhere * moe.num_experts_per_token * whole / num_gpus / rate
        touched = self.touched_experts(everywhere) * share.num_moe_layers
        read = touched * share.expert.num_bytes(self.fp8)
        return dense_s + head_s + max(routed_s, read / self.gpu.bandwidth)

    def _chunk_links_s(self, tokens: float) -> float:
        text, layout = self.config.text, self.layout
        sum_s = large_all_reduce_s(
            tokens * text.hidden_size * ACTIVATION_BYTES,
            layout.tp,
            self.gpu,
            self.constants.collectives,
            crosses_nodes=layout.tp_crosses_nodes,
            floor=self.floor,
        )
        return 2 * text.num_layers * sum_s + self._exchanges_s(tokens)

    def _query_width(self) -> int:
        return self.config.text.num_heads * self.config.text.head_dim

    # ------------------------------------------------------------------------------------- images

    def image_s(self, num_tokens: float, num_images: int = 1) -> float:
        """The vision tower over `num_images` images of `num_tokens` tokens each.

        Split: all GPUs of a copy work on each. Whole on each GPU: images are dealt out.
        """
        if num_tokens <= 0 or num_images <= 0:
            return 0.0
        each = -(-num_images // self.layout.tp) if self.layout.vision_data else num_images
        seconds = each * self._tower_s(num_tokens)
        if self.floor:
            return seconds
        return max(seconds, self.config.vision.depth * self.constants.engine.tower_layer_s)

    def _tower_s(self, num_tokens: float) -> float:
        vision, split = self.config.vision, self.layout.vision_split
        patches = num_tokens * vision.merge_size**2
        width, out = vision.hidden_size, vision.out_hidden_size
        block = 4 * width * width + 3 * width * vision.block_intermediate_size
        flops = 2 * patches * vision.depth * block / split
        flops += 4 * width * patches * patches * vision.depth / split
        flops += 2 * patches * vision.patch_dim * width
        flops += 2 * num_tokens * (vision.merge_size**2 * width * out + out * out)
        flops += 2 * num_tokens * 3 * out * vision.merger_intermediate_size / split
        seconds = flops / self.gpu.bf16
        if not self.floor:
            seconds /= self.constants.engine.tower_efficiency
        sums = large_all_reduce_s(
            patches * width * ACTIVATION_BYTES,
            split,
            self.gpu,
            self.constants.collectives,
            crosses_nodes=split > 1 and self.layout.tp_crosses_nodes,
            floor=self.floor,
        )
        return seconds + 2 * vision.depth * sums
