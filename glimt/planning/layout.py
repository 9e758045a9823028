"""A layout: how many GPUs share a copy, how many copies, and whether experts are spread whole."""

from collections.abc import Iterator
from dataclasses import dataclass

from glimt.models.config import ModelConfig

MOST_SHARING = 64  # copies that share experts; of more no plan is made


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal machines of equal GPUs."""

    gpus_per_node: int
    nodes: int = 1

    @property
    def num_gpus(self) -> int:
        """All of them."""
        return self.gpus_per_node * self.nodes


@dataclass(frozen=True, slots=True)
class Layout:
    """`tp` GPUs share each of `dp` copies. With `spread`, experts stay whole and are spread over
    the GPUs of all copies of a machine, with `wide` over those of all machines. `vision_data`: the
    tower is whole on each GPU."""

    tp: int = 1
    dp: int = 1
    spread: bool = False
    vision_data: bool = False
    gpus_per_node: int = 8
    wide: bool = False

    @property
    def num_gpus(self) -> int:
        """GPUs in use."""
        return self.tp * self.dp

    @property
    def copies_here(self) -> int:
        """Copies of a machine; 1 where a copy takes several."""
        return max(1, min(self.dp, self.gpus_per_node // self.tp))

    @property
    def sharing(self) -> int:
        """Copies that share experts, and so step together."""
        if not self.spread:
            return 1
        return self.dp if self.wide else self.copies_here

    @property
    def sharing_far(self) -> int:
        """Those of them that are on other machines."""
        return max(0, self.sharing - self.copies_here)

    @property
    def num_groups(self) -> int:
        """Copies, or groups of them, that step on their own."""
        return self.dp // self.sharing

    @property
    def ep(self) -> int:
        """GPUs over which the whole experts of a layer are spread; 1 = every expert is split."""
        return self.tp * self.sharing if self.spread else 1

    @property
    def expert_tp(self) -> int:
        """Ways each expert is split."""
        return 1 if self.spread else self.tp

    @property
    def vision_split(self) -> int:
        """Ways the vision tower is split."""
        return 1 if self.vision_data else self.tp

    @property
    def tp_crosses_nodes(self) -> bool:
        """Whether one copy lies on several machines."""
        return self.tp > self.gpus_per_node

    @property
    def name(self) -> str:
        """As people write it: TP4, TP2 x DP2 + EP; EP8 where experts do not span all GPUs."""
        parts = [f"TP{self.tp}"] if self.tp > 1 or self.dp == 1 else []
        parts += [f"DP{self.dp}"] if self.dp > 1 else []
        if self.spread:
            parts[-1] += " + EP" if self.num_groups == 1 else f" + EP{self.ep}"
        return " x ".join(parts)


def layouts(config: ModelConfig, cluster: Cluster) -> Iterator[Layout]:
    """Every layout that divides this model evenly and has no room for a further copy; GPUs of a
    machine may be left over, machines not."""
    for tp in range(1, cluster.num_gpus + 1):
        copies = _copies(tp, cluster)
        if not copies or not divides(config, tp):
            continue
        data = not _divides_vision(config, tp)
        for spread, wide in ((False, False), (True, False), (True, True)):
            layout = Layout(tp, copies, spread, data, cluster.gpus_per_node, wide)
            if not spread or _can_spread(config, layout):
                yield layout


def _copies(tp: int, cluster: Cluster) -> int:
    """How many copies of `tp` GPUs there is room for; 0 where machines would be left over."""
    if tp <= cluster.gpus_per_node:
        return cluster.gpus_per_node // tp * cluster.nodes
    return 0 if tp % cluster.gpus_per_node or cluster.num_gpus % tp else cluster.num_gpus // tp


def divides(config: ModelConfig, tp: int) -> bool:
    """Whether every width of the decoder can be split `tp` ways."""
    text = config.text
    kv = text.num_kv_heads
    widths = [text.num_heads, text.intermediate_size, text.vocab_size]
    if text.moe is not None:
        widths += [text.moe.intermediate_size, text.moe.shared_intermediate_size]
    return all(width % tp == 0 for width in widths) and (kv % tp == 0 or tp % kv == 0)


def _divides_vision(config: ModelConfig, tp: int) -> bool:
    """Whether the tower can be split `tp` ways; else it lies whole on each GPU."""
    vision = config.vision
    widths = vision.num_heads, vision.block_intermediate_size, vision.merger_intermediate_size
    return all(width % tp == 0 for width in widths)


def _can_spread(config: ModelConfig, layout: Layout) -> bool:
    moe = config.text.moe
    if layout.wide and (not layout.sharing_far or layout.tp_crosses_nodes):
        return False  # the same as without, or more than is served
    return (
        layout.sharing <= MOST_SHARING
        and moe is not None
        and layout.ep > 1
        and moe.num_experts % layout.ep == 0
    )
