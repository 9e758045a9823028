"""The arguments of `glimt eval`; the command line is made from them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

BUILTIN = "builtin"
Fp8 = Literal["fp8"]


@dataclass(frozen=True, kw_only=True)
class EvalWishes:
    """What to ask, how, and where the results go."""

    base_url: str | None = None
    """Ask this OpenAI-compatible server in place of a local model, e.g. http://127.0.0.1:8000/v1."""
    model_name: Annotated[str | None, Parameter(name="--model")] = None
    """The same as MODEL. With --base-url: its name there; default: the first that is listed."""
    api_key: str | None = None
    """Key that the servers want; better through GLIMT_API_KEY."""
    tasks: str = BUILTIN
    """builtin (the held-out tasks of the built-in model), a JSONL file, or a zip with tasks.jsonl
    and the media that it names."""
    skills: str | None = None
    """Only these skills: counting,colour."""
    limit: int | None = None
    """At most so many tasks of each skill, the first ones of the file."""
    output: str = "eval-results"
    """Folder for results.json and report.html; older ones in it are replaced."""
    concurrency: int = 32
    """Tasks that are asked at the same time."""
    thinking: Literal["task", "on", "off"] = "task"
    """Let the model think: as each task says, always, or never."""
    max_tokens: int = 1024
    """Longest answer in tokens, thoughts included."""
    temperature: float = 0.0
    """0: the most likely token each time."""
    seed: int = 0
    """Of answers that are drawn (--temperature)."""
    iou: float = 0.6
    """Overlap from which on a box counts as right."""
    quantization: Fp8 | None = None
    """fp8: turn a local BF16 checkpoint into FP8 while loading."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of a local model's KV cache."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Compute type of local models. auto: the checkpoint's on a GPU, float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where local models compute."""
    against: str | None = None
    """Compare with this checkpoint or URL on the same inputs; default where another --against flag
    is given: the same model."""
    against_model: str | None = None
    """Name of the model at the server of --against."""
    against_quantization: Fp8 | None = None
    """--quantization of the model compared with."""
    against_kv_cache_dtype: Fp8 | None = None
    """--kv-cache-dtype of the model compared with."""
