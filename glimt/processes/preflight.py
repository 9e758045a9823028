"""What machines must agree on before their ranks may meet: versions, checkpoint, settings.

Ranks that differ in one of them would compute something else than the others, without an error.
"""

import hashlib
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

_HASHED_FILES = ("config.json", "model.safetensors.index.json", "tokenizer.json")
_SAMPLE_BYTES = 64 * 1024
# Of EngineStart: what each machine has for itself.
_OWN = {
    *("index", "place_here", "inbox", "server_inboxes", "arena_fds", "model_path", "folder"),
    *("log_level", "log_json", "num_ranks_here", "profiler", "cluster", "expert_group"),
}
_FLAGS = {
    "memory_utilization": "gpu_memory_utilization",
    "page_size": "block_size",
    "prefix_caching": "enable_prefix_caching",
    "policy": "scheduling_policy",
    "overlap": "async_scheduling",
    "expert_parallel": "enable_expert_parallel",
    "encoder_tp_mode": "mm_encoder_tp_mode",
    "image_max_tokens": "mm_processor_kwargs",
    "estimates_work": "enable_mfu_metrics",
    "counts_experts": "enable_expert_load_metrics",
    "watched_pages": "kv_cache_metrics_sample",
    "num_nodes": "nnodes",
}


# Of NCCL's variables: those by which ranks choose how they talk. Names of interfaces may differ.
_NCCL = {
    *("ALGO", "BUFFSIZE", "IB_DISABLE", "MAX_CTAS", "MAX_NCHANNELS", "MIN_CTAS", "MIN_NCHANNELS"),
    *("NET", "NET_PLUGIN", "NTHREADS", "PROTO", "SOCKET_FAMILY"),
}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine brings. `checkpoint`: by file name, a hash or a size, in words. `variables`:
    of the environment, where ranks of several machines compute together.
    """

    versions: dict[str, str]
    checkpoint: dict[str, str]
    settings: dict[str, Any]
    variables: dict[str, str] = {}


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the machines of a replica find and know each other."""

    num_nodes: int
    host: str  # of machine 0
    port: int
    token: str
    facts: Facts


def facts_of(start: Any, glimt: str, **more: Any) -> Facts:
    """What this machine brings: its EngineStart `start`, its version of Glimt; `more` flags."""
    settings = {
        _FLAGS.get(name, name).replace("_", "-"): _comparable(value)
        for name, value in msgspec.structs.asdict(start).items()
        if name not in _OWN
    }
    return Facts(
        versions={"Glimt": glimt, "torch": version("torch")},
        checkpoint=checkpoint_facts(Path(start.model_path)),
        settings=settings | {name.replace("_", "-"): value for name, value in more.items()},
    )


def together(facts: Facts, environment: Mapping[str, str]) -> Facts:
    """`facts` of a machine whose ranks compute together with those of others."""
    variables = {
        name: value
        for name, value in environment.items()
        if name.startswith("NCCL_") and name.removeprefix("NCCL_") in _NCCL
    }
    return msgspec.structs.replace(facts, variables=variables)


def _comparable(value: Any) -> Any:
    """Numbers and texts as they are; a whole table by its hash."""
    if isinstance(value, msgspec.Struct):
        return f"sha256 {hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:16]}"
    return value


def checkpoint_facts(path: Path) -> dict[str, str]:
    """Hashes of the small files; of the weight files, which nobody wants to read twice, the size
    and a hash of samples.
    """
    facts = {}
    for name in _HASHED_FILES:
        if (path / name).is_file():
            digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
            facts[name] = f"sha256 {digest[:16]}"
    for file in sorted(path.glob("*.safetensors")):
        facts[file.name] = f"{file.stat().st_size:,} bytes, samples {_samples(file)}"
    return facts


def _samples(file: Path) -> str:
    """A hash of the beginning, the middle and the end: another training leaves no part alone."""
    num_bytes = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as data:
        for start in (0, num_bytes // 2, max(0, num_bytes - _SAMPLE_BYTES)):
            data.seek(start)
            digest.update(data.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def differences(here: Facts, there: Facts, name: str = "node 0") -> list[str]:
    """What differs, a line each; empty if the two machines may work together. `name`: of `here`."""
    return [
        *_differing("", here.versions, there.versions, name),
        *_differing("the checkpoint's ", here.checkpoint, there.checkpoint, name),
        *_differing("--", here.settings, there.settings, name),
        *_differing("", here.variables, there.variables, name),
    ]


def _differing(
    what: str, here: Mapping[str, Any], there: Mapping[str, Any], name_here: str
) -> Iterator[str]:
    for name in sorted({*here, *there}):
        ours, theirs = here.get(name, "missing"), there.get(name, "missing")
        if ours != theirs:
            yield f"{what}{name}: {theirs} there, {ours} on {name_here}"
