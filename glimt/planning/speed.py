"""The roofline: how long a decode step, a prompt and an image take under a layout.

    step     (weights read + context x KV per token) / bandwidth + all-reduces (+ launches)
    prompt   products at their rates; routed experts at the slower of products and reading
    image    the vision tower's products and attention, in 16 bits

Each time comes as a floor (the device's own limits) or as expected (what a good engine makes of
them). Formulas and the hand-calculated tables that tests hold them to: docs/planning.md.
"""

from dataclasses import dataclass
from functools import cached_property

from glimt.models.config import ModelConfig
from glimt.planning.constants import Constants, Gpu
from glimt.planning.layout import Layout
from glimt.planning.links import all_reduce_floor_s, all_reduce_s, large_all_reduce_s
from glimt.planning.routing import distinct_experts, fullest_gpu
from glimt.planning.shares import GpuShare, gpu_share, kv_token_bytes

ACTIVATION_BYTES = 2  # of a number that travels between GPUs


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

    @property
    def copies_together(self) -> int:
        """Copies that step together, because they share their experts."""
        return self.layout.dp if self.layout.spread else 1

    def step_bytes(self, batch: float, context: float, copies: int) -> float:
        """What a GPU reads in a decode step of `batch` requests in each of `copies` copies."""
        kv = kv_token_bytes(self.config.text, self.layout.tp, fp8=self.fp8_kv)
        weights = self.share.read_bytes(self.touched_experts(batch * copies))
        return weights + batch * context * kv

    def step_s(self, batch: float, context: float, copies: int | None = None) -> float:
        """A decode step of `batch` requests per copy with `context` tokens each.

        `copies`: how many of those that step together have so many; all of them if None.
        """
        engine = self.constants.engine
        copies = self.copies_together if copies is None else copies
        reading_s = self.step_bytes(batch, context, copies) / self.gpu.bandwidth
        links_s = self._step_links_s(batch, copies)
        if self.floor:
            return reading_s + links_s
        launches_s = self.config.text.num_layers * engine.launches_per_layer * engine.launch_s
        return reading_s / engine.decode_efficiency + launches_s + links_s

    def _step_links_s(self, batch: float, copies: int) -> float:
        """Two sums over all GPUs of a copy in each layer; spread experts join those of all copies.

        A sum counts for gathering the tokens and scattering the results: as many bytes.
        """
        text, layout = self.config.text, self.layout
        cost = all_reduce_floor_s if self.floor else all_reduce_s
        row = text.hidden_size * ACTIVATION_BYTES
        links = self.constants.collectives
        inside = cost(batch * row, layout.tp, links, crosses_nodes=layout.tp_crosses_nodes)
        if not layout.spread or layout.dp == 1:
            return 2 * text.num_layers * inside
        across = cost(
            batch * copies * row, layout.num_gpus, links, crosses_nodes=layout.ep_crosses_nodes
        )
        num_moe = self.share.num_moe_layers
        return (2 * text.num_layers - num_moe) * inside + num_moe * across

    # ------------------------------------------------------------------------------------ prompts

    def prompt_s(self, num_tokens: float, chunk: int, copies: int = 1) -> float:
        """A prompt of so many tokens, images included, in chunks of `chunk` tokens at most.

        `copies`: how many of the copies that step together compute such a prompt at once.
        """
        seconds, done = 0.0, 0.0
        while done < num_tokens:
            tokens = min(float(chunk), num_tokens - done)
            seconds += self._chunk_s(tokens, done, copies)
            done += tokens
        return seconds

    def _chunk_s(self, tokens: float, before: float, copies: int) -> float:
        products_s = self._products_s(tokens, copies)
        attention = 4 * self._query_width() * self.config.text.num_layers / self.layout.tp
        pairs = tokens * before + tokens * tokens / 2
        attention_s = attention * pairs / self.gpu.attention
        seconds = products_s + attention_s
        if not self.floor:
            seconds /= self.constants.engine.prefill_efficiency
        return seconds + self._chunk_links_s(tokens, copies)

    def _products_s(self, tokens: float, copies: int) -> float:
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
        gpus = self.layout.num_gpus if self.layout.spread else self.layout.tp
        routed_s = 2 * tokens * copies * moe.num_experts_per_token * whole / gpus / rate
        touched = self.touched_experts(tokens * copies) * share.num_moe_layers
        read = touched * share.expert.num_bytes(self.fp8)
        return dense_s + head_s + max(routed_s, read / self.gpu.bandwidth)

    def _chunk_links_s(self, tokens: float, copies: int) -> float:
        text, layout = self.config.text, self.layout
        num_bytes = tokens * text.hidden_size * ACTIVATION_BYTES
        links = self.constants.collectives
        inside = large_all_reduce_s(
            num_bytes, layout.tp, self.gpu, links, crosses_nodes=layout.tp_crosses_nodes
        )
        if not layout.spread or layout.dp == 1:
            return 2 * text.num_layers * inside
        across = large_all_reduce_s(
            num_bytes * copies,
            layout.num_gpus,
            self.gpu,
            links,
            crosses_nodes=layout.ep_crosses_nodes,
        )
        num_moe = self.share.num_moe_layers
        return (2 * text.num_layers - num_moe) * inside + num_moe * across

    def _query_width(self) -> int:
        return self.config.text.num_heads * self.config.text.head_dim

    # ------------------------------------------------------------------------------------- images

    def image_s(self, num_tokens: float, num_images: int = 1) -> float:
        """The vision tower over `num_images` images of `num_tokens` tokens each.

        Split: all GPUs of a copy work on each. Whole on each GPU: images are dealt out.
        """
        if num_tokens <= 0 or num_images <= 0:
            return 0.0
        one_s = self._tower_s(num_tokens)
        if self.layout.vision_data:
            return -(-num_images // self.layout.tp) * one_s
        return num_images * one_s

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
            seconds /= self.constants.engine.prefill_efficiency
        sums = large_all_reduce_s(
            patches * width * ACTIVATION_BYTES,
            split,
            self.gpu,
            self.constants.collectives,
            crosses_nodes=split > 1 and self.layout.tp_crosses_nodes,
        )
        return seconds + 2 * vision.depth * sums
