"""SchedulerLimits: the numbers that bound what one engine takes on, resolved once at start."""

from dataclasses import dataclass
from typing import Literal

from glimt.errors import BadSettings

SchedulingPolicy = Literal["fcfs", "priority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Bounds of memory, of a step, and of a request. Raises BadSettings if they contradict.

    The rules below make "fits alone" true for every request within `max_model_len`, so a request
    that was accepted can always be finished by preempting others.
    """

    num_pages: int  # pages of KV memory
    page_size: int  # tokens of a page
    max_num_seqs: int  # running requests = rows
    max_num_batched_tokens: int  # token budget of a step
    max_model_len: int  # prompt and output of one request together, tokens
    image_budget: int  # image tokens encoded in one step
    image_cache_tokens: int  # image tokens that the executor's embedding cache holds
    largest_image: int = 2**31 - 1  # tokens of an image that there is memory to encode
    prefix_caching: bool = True
    encodes_beside: bool = True  # steps that have other work do not wait for images
    follow_tokens: int = 0  # of a prompt, for which one waits if another computes them; 0: never
    policy: SchedulingPolicy = "fcfs"
    vocab_size: int = 2**31 - 1  # ids are 0 … vocab_size - 1
    watched_pages: float = 0.0  # share of the KV pages whose lives are told, 0 to 1

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise BadSettings("The engine's limits contradict each other:", problems)

    @property
    def max_image_tokens(self) -> int:
        """The largest span that can be encoded: it must fit the tower, one step and the cache."""
        return min(self.largest_image, self.image_budget, self.image_cache_tokens)

    def num_pages_for(self, num_tokens: int) -> int:
        """Pages that hold the KV of `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def _problems(self) -> list[str]:
        problems = [
            f"{name} is {getattr(self, name)} and must be at least 1"
            for name in (
                "num_pages",
                "page_size",
                "max_num_seqs",
                "max_num_batched_tokens",
                "max_model_len",
                "vocab_size",
            )
            if getattr(self, name) < 1
        ]
        if problems:
            return problems
        if self.num_pages * self.page_size < self.max_model_len:
            problems.append(
                f"{self.num_pages} pages of {self.page_size} tokens cannot hold one request of "
                f"max_model_len {self.max_model_len}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            problems.append(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below "
                f"max_num_seqs {self.max_num_seqs}: each running request needs a token of a step"
            )
        if min(self.image_budget, self.image_cache_tokens, self.follow_tokens) < 0:
            problems.append("image_budget, image_cache_tokens and follow_tokens cannot be negative")
        if self.policy not in ("fcfs", "priority"):
            problems.append(f"unknown scheduling policy {self.policy!r}")
        return problems
