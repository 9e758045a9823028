"""The loads that both clients offer: options of `bench serve`, which they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHAT = ("--backend", "openai-chat", "--endpoint", "/v1/chat/completions")
COMPLETIONS = ("--backend", "openai", "--endpoint", "/v1/completions")


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


def model_loads(arena: Path, seconds: float, rates: Sequence[float], tokens: int) -> list[Load]:
    """For a real server: one at a time, and at `rates` (pictures, texts) that must be well below
    what it can do, since near its limit waiting multiplies every chance difference."""
    kinds = (
        ("pictures", (*CHAT, *_pictures(arena, tokens), "--ignore-eos")),
        ("text of 400 tokens", (*CHAT, *_text(400, tokens))),
    )
    loads = []
    for (name, options), rate in zip(kinds, rates, strict=True):
        paced = (*options, "--request-rate", f"{rate:g}")
        loads.append(Load(f"{name}, {rate:g} requests/s", max(2, round(rate * seconds)), paced))
        alone = (*options, *_at_once(1))
        loads.append(Load(f"{name}, one at a time", max(2, round(2 * rate * seconds)), alone))
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
