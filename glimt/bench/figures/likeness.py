"""Whether the client's tokenizer is the server's: both count the same texts."""

from collections.abc import Sequence

from glimt.bench.events import EventLog, RequestEvent

_TOLERATED = 0.1
_TEMPLATE = 64  # tokens that a chat template may add to each prompt


def tokenizer_doubt(log: EventLog, requests: Sequence[RequestEvent]) -> str | None:
    """What to think of the lengths of prompts if the counts are too far apart; None if they agree.

    Only prompts of one text tell: those of images have tokens that the client cannot count, and
    those of later turns have the turns before them.
    """
    pairs = [
        (event.text_tokens, event.prompt_tokens)
        for event in requests
        if event.text_tokens and event.prompt_tokens and not (event.num_images or event.turn)
    ]
    if not pairs:
        return None
    ours, theirs = (sum(counts) for counts in zip(*pairs, strict=True))
    is_chat = log.start.backend not in ("openai", "vllm")
    allowance = _TEMPLATE * len(pairs) if is_chat else 0
    if ours * (1 - _TOLERATED) <= theirs <= ours * (1 + _TOLERATED) + allowance:
        return None
    return (
        f"the server counts {theirs:,} tokens in prompts whose texts have {ours:,} by this "
        "client's tokenizer: give the served model's as --tokenizer, or lengths are not those asked"
    )
