"""Which models are measured: what the arguments say, checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from glimt.builtin import model as builtin
from glimt.errors import BadSettings
from glimt.evaluation.wishes import EvalWishes

_LOCAL_FLAGS = ("quantization", "kv_cache_dtype", "dtype", "device")
_AGAINST_FLAGS = ("against_quantization", "against_kv_cache_dtype")


@dataclass(frozen=True)
class Subject:
    """A checkpoint (`base_url` None), or a model at a server (`model` None: the server's first)."""

    base_url: str | None
    model: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)  # arguments of LLM

    @property
    def is_local(self) -> bool:
        """Whether it is loaded in this process."""
        return self.base_url is None

    @property
    def label(self) -> str:
        """What tables call it: the model, and how it is changed while loading."""
        marks = []
        if (weights := self.settings.get("quantization")) is not None:
            marks.append(f"{weights} weights")
        if (kv := self.settings.get("kv_cache_dtype", "auto")) != "auto":
            marks.append(f"{kv} KV")
        name = self.model or self.base_url or ""
        return f"{name} ({', '.join(marks)})" if marks else name


def subjects_of(model: str | None, wishes: EvalWishes) -> list[Subject]:
    """The model, and the one it is compared with, if any. Raises BadSettings with all problems."""
    problems = [*_naming(model, wishes), *_ranges(wishes)]
    if problems:
        raise BadSettings("nothing was asked:", problems)
    first = Subject(
        None if wishes.base_url is None else _with_scheme(wishes.base_url),
        model or wishes.model_name or (builtin.NAME if wishes.base_url is None else None),
        {} if wishes.base_url is not None else _settings(wishes, against=False),
    )
    against = wishes.against
    if against is None and not _has_against_flags(wishes):
        return [first]
    if against is not None and _is_url(against):
        return [first, Subject(against, wishes.against_model)]
    return [first, Subject(None, against or first.model, _settings(wishes, against=True))]


def _settings(wishes: EvalWishes, *, against: bool) -> dict[str, Any]:
    """Of the model compared with, only its own flags count, apart from where and in what type it
    computes."""
    kv_cache_dtype = wishes.against_kv_cache_dtype or "auto" if against else wishes.kv_cache_dtype
    return {
        "quantization": wishes.against_quantization if against else wishes.quantization,
        "kv_cache_dtype": kv_cache_dtype,
        "dtype": wishes.dtype,
        "device": wishes.device,
        "seed": wishes.seed,
    }


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _with_scheme(base_url: str) -> str:
    return base_url if "://" in base_url else f"http://{base_url}"


def _has_against_flags(wishes: EvalWishes) -> bool:
    return any(getattr(wishes, name) is not None for name in _AGAINST_FLAGS)


def _naming(model: str | None, wishes: EvalWishes) -> Iterator[str]:
    if model is not None and wishes.model_name not in (None, model):
        yield f"MODEL is {model} and --model is {wishes.model_name}: name one"
    if wishes.base_url is not None and not _is_url(_with_scheme(wishes.base_url)):
        yield f"--base-url {wishes.base_url}: write it like http://127.0.0.1:8000/v1"
    both_remote = wishes.against is None or _is_url(wishes.against)
    if wishes.base_url is not None and both_remote:
        for name in _LOCAL_FLAGS:
            if getattr(wishes, name) != getattr(EvalWishes(), name):
                flag = f"--{name.replace('_', '-')}"
                yield f"{flag} is for local models; the server was started with its own"
    yield from _against(wishes)


def _against(wishes: EvalWishes) -> Iterator[str]:
    is_remote = wishes.against is not None and _is_url(wishes.against)
    if _has_against_flags(wishes):
        if is_remote:
            yield "--against-… flags are for local models; the server was started with its own"
        elif wishes.against is None and wishes.base_url is not None:
            yield "--against-… flags need a checkpoint to load: name it with --against"
    if wishes.against_model is not None and not is_remote:
        yield "--against-model is a name at a server: it goes with --against URL"


def _ranges(wishes: EvalWishes) -> Iterator[str]:
    for flag, value in (
        ("--limit", wishes.limit),
        ("--concurrency", wishes.concurrency),
        ("--max-tokens", wishes.max_tokens),
    ):
        if value is not None and value < 1:
            yield f"{flag} {value}: must be at least 1"
    if not 0 < wishes.iou <= 1:
        yield f"--iou {wishes.iou}: must be above 0, at most 1"
    if not 0 <= wishes.temperature <= 100:
        yield f"--temperature {wishes.temperature}: must be 0 to 100"
    if not 0 <= wishes.seed < 2**63:
        yield f"--seed {wishes.seed}: must be 0 to 2^63 - 1"
