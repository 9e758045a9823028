"""Dividing a decoder's sizes among ranks: which range is whose, and whether they can be divided."""

from dataclasses import dataclass

from glimt.errors import BadSettings
from glimt.models.config import TextConfig

Range = tuple[int, int]  # [start, stop)


@dataclass(frozen=True, slots=True)
class Split:
    """One rank's share of everything that is split `size` ways."""

    rank: int = 0
    size: int = 1

    def part(self, count: int, what: str) -> Range:
        """This rank's range of `count` things. Raises BadSettings if they cannot be shared."""
        if count % self.size:
            raise BadSettings(f"{what} ({count}) cannot be divided among {self.size} GPUs")
        width = count // self.size
        return self.rank * width, (self.rank + 1) * width

    def kv_heads(self, count: int) -> Range:
        """Like `part`; with fewer heads than ranks, neighbouring ranks hold the same head."""
        if count < self.size and self.size % count == 0:
            head = self.rank * count // self.size
            return head, head + 1
        return self.part(count, "key-value heads")


UNDIVIDED = Split()
_MOST_NAMED = 64  # ranks


def check_sizes(text: TextConfig, size: int, *, whole_experts: bool) -> None:
    """Raises BadSettings for the first size of a decoder that `size` ranks cannot share, with the
    numbers of ranks that can: known before any of them is started. (A vision tower that cannot be
    split lies whole on each.)
    """
    try:
        _try_sizes(text, size, whole_experts)
    except BadSettings as error:
        fine = [n for n in range(1, _MOST_NAMED + 1) if _can_share(text, n, whole_experts)]
        numbers = ", ".join(map(str, fine))
        raise BadSettings(f"{error}: --tensor-parallel-size can be {numbers} here") from None


def _can_share(text: TextConfig, size: int, whole_experts: bool) -> bool:
    try:
        _try_sizes(text, size, whole_experts)
    except BadSettings:
        return False
    return True


def _try_sizes(text: TextConfig, size: int, whole_experts: bool) -> None:
    split = Split(0, size)
    split.part(text.vocab_size, "vocabulary")
    split.part(text.num_heads, "attention heads")
    split.kv_heads(text.num_kv_heads)
    are_moe = [text.is_moe_layer(layer) for layer in range(text.num_layers)]
    if not all(are_moe):
        split.part(text.intermediate_size, "feed-forward width")
    if text.moe is not None and any(are_moe):
        split.part(text.moe.shared_intermediate_size, "feed-forward width")
        if not whole_experts:
            split.part(text.moe.intermediate_size, "expert width")
