"""The loads that both clients offer: options of `bench serve`, which they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHAT = ("--backend", "openai-chat", "--endpoint", "/v1/chat/completions")
COMPLETIONS = ("--backend", "openai", "--endpoint", "/v1/completions")

_TRIED = 4  # requests from which it is told how long one takes
_ROOM = 1.6  # gaps between requests, as a multiple of what one takes
_HIGHEST_RATE = 10.0  # requests a second, so that a run has no more than the file has pictures


@dataclass(frozen=True)
class Load:
    """`count` requests of one kind; `options` are all but their number."""

    name: str
    count: int
    options: tuple[str, ...]

    @property
    def endpoint(self) -> str:
        """The path that it asks."""
        return self.options[self.options.index("--endpoint") + 1]

    def arguments(self, count: int | None = None) -> list[str]:
        """The options, for all of its requests or for the first `count` of them."""
        return [*self.options, "--num-prompts", str(count or self.count)]


def scripted_loads(arena: Path, seconds: float) -> list[Load]:
    """For the scripted server, which answers 128 tokens in 1.37 s however many ask."""
    many, few = max(10, round(20 * seconds)), max(2, round(seconds / 1.37))
    fast = ("--request-rate", "20")
    text = _text(90, 128)
    half = ("--extra-body", '{"script": {"reasoning_tokens": 64}}')
    return [
        Load("pictures, 20 requests/s", many, (*CHAT, *_pictures(arena, 128), *fast)),
        Load("pictures, one at a time", few, (*CHAT, *_pictures(arena, 128), *_at_once(1))),
        Load(
            "text, 20 requests/s, burstiness 0.5",
            many,
            (*CHAT, *text, *fast, "--burstiness", "0.5"),
        ),
        Load("text by /v1/completions, 4 at a time", 4 * few, (*COMPLETIONS, *text, *_at_once(4))),
        Load("half of the tokens thinking, 20 requests/s", many, (*CHAT, *text, *fast, *half)),
    ]


def model_kinds(arena: Path, lengths: Sequence[int], tokens: int) -> list[Load]:
    """For a real server: pictures, and texts of some lengths; answers of `tokens` tokens."""
    pictures = Load("pictures", _TRIED, (*CHAT, *_pictures(arena, tokens), "--ignore-eos"))
    texts = [
        Load(f"text of {length} tokens", _TRIED, (*CHAT, *_text(length, tokens)))
        for length in lengths
    ]
    return [pictures, *texts]


def alone(kind: Load, count: int) -> Load:
    """So many of them, each after the answer to the one before."""
    return Load(f"{kind.name}, one at a time", count, (*kind.options, *_at_once(1)))


def model_loads(kinds: Sequence[Load], took_s: Sequence[float], seconds: float) -> list[Load]:
    """Runs of about so many seconds of each kind, of which a request took `took_s`: one at a time,
    and at fixed gaps that are wide enough for none to meet another, since waiting would multiply
    every chance difference of the server."""
    loads = []
    for kind, took in zip(kinds, took_s, strict=True):
        rate = f"{min(1 / (_ROOM * took), _HIGHEST_RATE):.2g}"
        count = max(2, round(seconds * float(rate)))
        at_gaps = (*kind.options, "--request-rate", rate, "--burstiness", "inf")
        loads.append(Load(f"{kind.name}, {rate}/s at fixed gaps", count, at_gaps))
        loads.append(alone(kind, round(_ROOM * count)))
    return loads


def _pictures(arena: Path, tokens: int) -> tuple[str, ...]:
    """VisionArena's look-alike from a file that both clients read."""
    which = ("--hf-name", "lmarena-ai/VisionArena-Chat", "--hf-output-len", str(tokens))
    return ("--dataset-name", "hf", "--dataset-path", str(arena), "--disable-shuffle", *which)


def _text(length: int, tokens: int) -> tuple[str, ...]:
    sizes = ("--random-input-len", str(length), "--random-output-len", str(tokens))
    return ("--dataset-name", "random", *sizes)


def _at_once(count: int) -> tuple[str, ...]:
    return ("--max-concurrency", str(count))
