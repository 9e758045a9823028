"""Glimt: an inference server for the GLM-V vision-language models.

Importing this package imports nothing else: what it exports is looked up only when it is used, so
that parts without torch stay without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glimt.llm import LLM
    from glimt.offline.params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from glimt.llm import LLM

        return LLM
    if name == "SamplingParams":
        from glimt.offline.params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'glimt' has no attribute {name!r}")
