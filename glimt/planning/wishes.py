"""The arguments of `glimt plan`; the command line is made from them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter


@dataclass(frozen=True, kw_only=True)
class PlanWishes:
    """Which GPUs, which requests, how many of them."""

    gpu: str = "h200"
    """Kind of GPU: h100, h200, h20, b200, or one that --constants adds."""
    gpus: int = 1
    """GPUs of one machine."""
    nodes: int = 1
    """Machines of that kind."""
    rate: float | None = None
    """Requests per second that shall be carried; default: the best layout for one at a time."""
    input: int = 90
    """Tokens of text in a typical prompt."""
    output: int = 128
    """Tokens of a typical answer."""
    images: int = 1
    """Images of a typical prompt."""
    image_size: str = "1024x1024"
    """Their size in pixels, width x height."""
    quantization: Annotated[Literal["fp8"] | None, Parameter(alias="-q")] = None
    """fp8: turn a BF16 checkpoint into FP8 while loading."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of the KV cache."""
    max_model_len: str | None = None
    """Longest prompt plus answer; default: the checkpoint's limit, or what fits."""
    gpu_memory_utilization: float = 0.92
    """Share of each GPU's memory that may be used."""
    max_num_seqs: int = 256
    """Requests that run at once in one copy."""
    max_num_batched_tokens: int = 8192
    """Tokens per step."""
    constants: str | None = None
    """TOML file laid over the constants of the estimates, e.g. with your own measurements."""
    explain: bool = False
    """Also list the constants, with where each comes from."""
    json: bool = False
    """The whole plan as JSON, in place of the table."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
