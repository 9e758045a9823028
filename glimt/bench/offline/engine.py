"""The engine in this process, for benchmarks of it alone."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from glimt.bench.data.tokens import Tokens
from glimt.builtin import model as builtin
from glimt.hub import locate
from glimt.llm import LLM


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine; flags of `glimt serve`."""

    dtype: str = "auto"
    """Compute type."""
    quantization: str | None = None
    """fp8: turn a BF16 checkpoint into FP8 while loading."""
    load_format: str = "auto"
    """dummy: random weights."""
    hf_overrides: str | None = None
    """JSON merged into config.json; '{"text_config": {"num_hidden_layers": 4}}': four layers."""
    enforce_eager: bool = False
    """No CUDA graphs."""
    max_model_len: str | None = None
    """Longest prompt plus answer, in tokens."""
    max_num_seqs: int | None = None
    """Most requests computed together."""
    max_num_batched_tokens: int | None = None
    """Most tokens of one step."""
    gpu_memory_utilization: float = 0.92
    """Share of the GPU's memory to use."""
    kv_cache_dtype: str = "auto"
    """Type of the KV cache."""
    device: str = "auto"
    """cuda, cpu, or auto."""
    tensor_parallel_size: Annotated[int, Parameter(alias="-tp")] = 1
    """GPUs that share the model."""
    enable_expert_parallel: Annotated[bool, Parameter(alias="-ep")] = False
    """Whole experts on each of them."""
    mm_encoder_tp_mode: Literal["weights", "data"] = "weights"
    """How they share the vision tower."""
    enable_prefix_caching: bool = True
    """Look prompts up in the prefix cache. Off for `latency`."""
    seed: int = 0
    """Of prompts and sampling."""


def load(model: str, options: EngineOptions, **changes: Any) -> LLM:
    """The model, loaded. Raises StartupError."""
    return LLM(model, **(asdict(options) | changes))


def tokens_of(model: str) -> Tokens:
    """Its tokenizer. Raises StartupError."""
    return Tokens(Path(locate(model, weights=False)) / "tokenizer.json")


DEFAULT_MODEL = builtin.NAME
