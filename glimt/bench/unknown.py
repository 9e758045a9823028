"""What is said of words that `glimt bench` does not know: what to use in their place."""

import difflib
from collections.abc import Sequence
from typing import Any

from cyclopts import (
    CoercionError,
    CycloptsError,
    CycloptsPanel,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

_AUDIO = "Audio is not measured here: the models served take text, images and videos"
_POOLING = "Embeddings and reranking are not measured here"
_ROWS = "write its prompts to a file for --dataset-name custom"
_SONNET = "vLLM's client dropped that dataset: use --dataset-name prefix_repetition"
# By the start of the option: those of vLLM's client, of this release or an earlier one, and of
# other clients where there is more to say than another name.
_INSTEAD = {
    "--asr-": _AUDIO,
    "--custom-audio": _AUDIO,
    "--no-reranker": _POOLING,
    "--spec-bench-": f"That dataset is not read: {_ROWS}",
    "--speed-bench-": f"That dataset is not read: {_ROWS}",
    "--blazedit-": f"That dataset is not read: {_ROWS}",
    "--bfcl-": f"That dataset is not read: {_ROWS}, and tools to --extra-body",
    "--sonnet-": _SONNET,
    "--self-test": "The client is measured by `glimt bench ceiling`",
    "--api-key": "Set OPENAI_API_KEY, or give --header Authorization='Bearer KEY'",
    "--disable-stream": "Answers are always streamed: without that no time to the first token",
    "--disable-ignore-eos": "Answers end where the model ends them, unless --ignore-eos is given",
    "--flush-cache": "Give --cache-bust, which makes every prompt new to the server's caches",
}
# Options of other clients and of earlier releases that are the same under another name.
_RENAMED = {
    "--endpoint-type": "--backend",
    "--endpoint-path": "--endpoint",
    "--url": "--base-url",
    "--api-base": "--base-url",
    "--target": "--base-url",
    "--dataset": "--dataset-name",
    "--data": "--dataset-name",
    "--rate": "--request-rate",
    "--qps": "--request-rate",
    "--rps": "--request-rate",
    "--concurrency": "--max-concurrency",
    "--parallel": "--max-concurrency",
    "--num-requests": "--num-prompts",
    "--request-count": "--num-prompts",
    "--max-requests": "--num-prompts",
    "--number": "--num-prompts",
    "--max-seconds": "--duration",
    "--benchmark-duration": "--duration",
    "--isl": "--input-len",
    "--osl": "--output-len",
    "--max-tokens": "--output-len",
    "--extra-inputs": "--extra-body",
    "--extra-request-body": "--extra-body",
    "--random-seed": "--seed",
    "--output-file": "--result-filename",
    "--output-json": "--result-filename",
    "--json": "--save-result",
    "--timeout": "--request-timeout",
    "--report": "--html",
    "--plot": "--html",
    "--slo": "--goodput",
    "--num-workers": "--workers",
}
# Commands of vLLM's `bench` that are called otherwise here.
_COMMANDS = {
    "sweep": "Use `glimt bench serve --sweep rate=1,2,4` (or concurrency=…), or --find-max-rate",
    "mm-processor": "Use `glimt bench mm`",
    "serve-workload": "Use `glimt bench serve --sweep`",
}
# Values that vLLM's client takes and this one does not, by their option.
_REFUSED = {
    "--dataset-name": {
        "random-rerank": _POOLING,
        "custom_audio": _AUDIO,
        "spec_bench": f"That dataset is not read: {_ROWS}",
        "speed_bench": f"That dataset is not read: {_ROWS}",
        "sonnet": _SONNET,
    },
    "--backend": {
        "openai-audio": _AUDIO,
        "vllm-pooling": _POOLING,
        "vllm-rerank": _POOLING,
        "infinity-embeddings": _POOLING,
        "infinity-embeddings-clip": _POOLING,
        "openai-embeddings": _POOLING,
        "openai-embeddings-chat": _POOLING,
        "openai-embeddings-clip": _POOLING,
        "openai-embeddings-vlm2vec": _POOLING,
        "vllm-chat": "It is called openai-chat",
        "sglang": "SGLang's server speaks the same API: use openai or openai-chat",
    },
}


def explain(error: CycloptsError) -> Any:
    """For cyclopts: the error as it is to be printed."""
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value or "").partition("=")[0]
        known = [name for argument in error.argument_collection for name in argument.names]
        return CycloptsPanel(f"Unknown option: {option}.{_hint(option, known)}")
    if isinstance(error, CoercionError) and error.token is not None:
        option, value = error.token.keyword or "", error.token.value or ""
        if (reason := _REFUSED.get(option, {}).get(value)) is not None:
            return CycloptsPanel(f"{option} {value}: {reason}.")
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        command = error.unused_tokens[0]
        if (reason := _COMMANDS.get(command)) is not None:
            return CycloptsPanel(f"Unknown command: {command}. {reason}.")
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(error.unused_tokens or ())
        return CycloptsPanel(
            f"Not understood: {words}. An option begins with two hyphens; a value with spaces "
            "needs quotation marks."
        )
    return CycloptsPanel(error)


def instead(option: str) -> str | None:
    """What to do in place of an option of another client; None if it is not known."""
    return next((says for start, says in _INSTEAD.items() if option.startswith(start)), None)


def nearest(option: str, known: Sequence[str]) -> str | None:
    """The option that was probably meant: one that begins like it, or the most alike by its
    letters and its words."""
    if (renamed := _RENAMED.get(option)) in known:
        return renamed
    begun = [name for name in known if name.startswith(option)]
    if begun and len(option) > len("--x"):
        return min(begun, key=len)
    words = set(option.strip("-").split("-"))

    def likeness(name: str) -> float:
        shared = words & set(name.strip("-").split("-"))
        return difflib.SequenceMatcher(None, option, name).ratio() + len(shared) / len(words) / 2

    return max(known, key=likeness, default=None)


def _hint(option: str, known: Sequence[str]) -> str:
    if (reason := instead(option)) is not None:
        return f" {reason}."
    near = nearest(option, known)
    return f" The nearest is {near}." if near is not None else ""
