"""Turns the user's wishes, the checkpoint and the free memory into final numbers, once."""

from collections.abc import Callable
from dataclasses import dataclass

from glimt.errors import BadSettings, NotEnoughMemory
from glimt.processes.control import EngineStart


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The sizes that do not depend on free memory; a step's peak is measured with them."""

    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    image_budget: int  # image tokens whose encoding one step starts
    pass_tokens: int  # image tokens that go through the vision tower together
    largest_image: int  # tokens
    image_cache_tokens: int
    follow_tokens: int  # of a prompt, for which one waits if another computes them


@dataclass(frozen=True, slots=True)
class MemorySizes:
    """The sizes that fit into the memory that is left."""

    max_model_len: int
    num_pages: int


# Images of a thousand tokens keep a GPU busy one by one; smaller ones gain from company. Who comes
# later in a pass is not ready earlier for it.
_PASS_TOKENS = {"cuda": 2048, "cpu": 512}

# Who waits for another's pages begins a step or two later, which on a GPU last about as long as so
# many tokens; on a CPU each token of a prompt takes its time.
_FOLLOW_TOKENS = {"cuda": 256, "cpu": 64}

# On a CPU one step of 8192 tokens would hold every stream up for seconds.
_DEFAULTS = {"cuda": (64, 256, 8192), "cpu": (16, 32, 1024)}


def step_sizes(start: EngineStart, device_type: str, longest: int) -> StepSizes:
    """Defaults for what the user left open; `longest` is the longest request in tokens."""
    page_size, seqs, tokens = _DEFAULTS[device_type]
    max_num_seqs = start.max_num_seqs
    max_num_batched_tokens = start.max_num_batched_tokens
    if max_num_seqs is None:
        max_num_seqs = min(seqs, max_num_batched_tokens or tokens)
    if max_num_batched_tokens is None:
        max_num_batched_tokens = max(tokens, max_num_seqs)
    # The largest image must fit one step, but no image beyond the context can come.
    largest_image = min(start.image_max_tokens, longest)
    image_budget = max(max_num_batched_tokens, largest_image)
    return StepSizes(
        page_size=start.page_size or page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        image_budget=image_budget,
        pass_tokens=_PASS_TOKENS[device_type],
        largest_image=largest_image,
        image_cache_tokens=max(2 * image_budget, 4 * max_num_batched_tokens),
        follow_tokens=_FOLLOW_TOKENS[device_type],
    )


def longest_request(start: EngineStart, checkpoint_limit: int) -> int:
    """The longest request that the user lets through, before memory is known.

    Raises BadSettings if it is more than the checkpoint was made for.
    """
    wanted = start.max_model_len
    if not wanted:
        return checkpoint_limit
    if wanted > checkpoint_limit:
        raise BadSettings(
            f"--max-model-len {wanted} is more than the {checkpoint_limit} positions of this "
            "checkpoint; answers would be noise beyond them"
        )
    return wanted


def memory_sizes(
    start: EngineStart,
    steps: StepSizes,
    longest: int,
    page_bytes: int,
    kv_bytes: Callable[[], int],
) -> MemorySizes:
    """How many pages, and under `--max-model-len auto` how long a request. `page_bytes` over all
    layers; `kv_bytes` gives the memory for the KV cache. Raises NotEnoughMemory.
    """
    available = start.kv_cache_memory_bytes
    if available is None:
        available = kv_bytes()
    pages = available // page_bytes
    fitting = pages * steps.page_size
    if fitting < longest and start.max_model_len != 0:
        given = start.kv_cache_memory_bytes is not None
        raise NotEnoughMemory(
            f"a request of {longest:,} tokens needs "
            f"{-(-longest // steps.page_size) * page_bytes / 2**30:.2f} GiB of KV cache and "
            f"{available / 2**30:.2f} GiB are free: use --max-model-len {max(fitting, 1)} or auto, "
            f"a higher --{'kv-cache-memory-bytes' if given else 'gpu-memory-utilization'}, or "
            "--kv-cache-dtype fp8"
        )
    max_model_len = min(longest, fitting)
    if max_model_len < 1:
        raise NotEnoughMemory(
            f"{available / 2**20:.1f} MiB for the KV cache hold not even one page of "
            f"{page_bytes / 2**20:.1f} MiB"
        )
    if start.kv_cache_memory_bytes is None:
        # More than every row at full length could use is memory taken from others for nothing.
        pages = min(pages, steps.max_num_seqs * -(-max_model_len // steps.page_size))
    return MemorySizes(max_model_len, pages)
