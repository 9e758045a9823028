"""The `glimt serve` command lines that a plan comes to, and what this version says to them."""

import shlex

from glimt.config import (
    CacheSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    ServerSettings,
    Settings,
)
from glimt.config_check import check
from glimt.errors import BadSettings
from glimt.planning.plan import Estimate, Plan

PARSER = "glm45"  # all of the family's models write thoughts and calls alike
FIRST_NODE = "NODE0"
TOKEN = "SECRET-OF-ALL-NODES"


def settings_of(plan: Plan, model: str, *, quantize: bool) -> Settings:
    """What the recommended layout is served with (on machine 0 of several)."""
    best, room, work = plan.best, plan.question.room, plan.question.work
    defaults = CacheSettings()
    several = plan.question.cluster.nodes > 1
    return Settings(
        model=model,
        models=ModelSettings(
            max_model_len=_max_model_len(plan),
            quantization="fp8" if quantize else None,
        ),
        cache=CacheSettings(
            gpu_memory_utilization=room.utilization,
            kv_cache_dtype="fp8" if plan.question.fp8_kv else "auto",
            max_num_seqs=None if room.max_num_seqs == 256 else room.max_num_seqs,
            max_num_batched_tokens=None if work.chunk == 8192 else work.chunk,
            enable_prefix_caching=defaults.enable_prefix_caching,
        ),
        media=MediaSettings(
            mm_encoder_tp_mode="data"
            if best.layout.vision_data and best.layout.tp > 1
            else "weights",
            mm_processor_cache_type="shm" if best.layout.dp > 1 else "lru",
        ),
        parallel=ParallelSettings(
            tensor_parallel_size=best.layout.tp,
            data_parallel_size=best.layout.dp,
            enable_expert_parallel=best.layout.spread,
            nnodes=plan.question.cluster.nodes,
            master_addr=FIRST_NODE if several else None,
            master_token=TOKEN if several else None,
        ),
        server=ServerSettings(
            reasoning_parser="glm45", tool_call_parser="glm45", enable_auto_tool_choice=True
        ),
    )


def command_lines(plan: Plan, model: str, *, quantize: bool) -> list[str]:
    """One line for each machine."""
    settings = settings_of(plan, model, quantize=quantize)
    words = ["glimt", "serve", model, *_flags(settings)]
    nodes = plan.question.cluster.nodes
    if nodes == 1:
        return [shlex.join(words)]
    lines = []
    for rank in range(nodes):
        role = ["--node-rank", str(rank), *(["--headless"] if rank else [])]
        lines.append(shlex.join([*words, *role]))
    return lines


def refusals(plan: Plan, model: str, *, quantize: bool) -> list[str]:
    """Why this version would not start with these settings; empty if it would."""
    try:
        check(settings_of(plan, model, quantize=quantize))
    except BadSettings as error:
        return list(error.problems)
    return []


def _flags(settings: Settings) -> list[str]:
    """Everything that is not at its default, as a user would type it."""
    words: list[str] = []
    for group in (settings.parallel, settings.models, settings.cache, settings.media):
        words += _changed(group)
    return [*words, *_changed(settings.server)]


def _changed(group: object) -> list[str]:
    defaults = type(group)()
    words: list[str] = []
    for name in group.__dataclass_fields__:  # type: ignore[attr-defined]
        value = getattr(group, name)
        if value == getattr(defaults, name):
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(f"{value:g}" if isinstance(value, float) else str(value))
    return words


def _max_model_len(plan: Plan) -> str | None:
    best: Estimate = plan.best
    limit = plan.question.config.text.max_position_embeddings
    wanted = plan.question.room.max_model_len
    if wanted is None and best.fit.longest >= limit:
        return None
    return str(best.fit.longest)
