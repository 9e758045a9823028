"""The `glimt serve` command lines that a plan comes to, by hand and by Ray, and what this version
says to them.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace

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
from glimt.planning.layout import Layout
from glimt.planning.plan import Estimate, Plan

TOKEN = "SECRET-OF-ALL-NODES"
TOKEN_LINE = f"export GLIMT_MASTER_TOKEN={TOKEN}"  # not a flag, which every user of a machine sees
_MOST_LINES = 4


def settings_of(plan: Plan, model: str, *, quantize: bool, node: int = 0) -> Settings:
    """What the recommended layout is served with, on machine `node` of several."""
    best, room, work = plan.best, plan.question.room, plan.question.work
    defaults = CacheSettings()
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
        parallel=_parallel(plan, node),
        server=ServerSettings(  # all of the family's models write thoughts and calls alike
            reasoning_parser="glm45", tool_call_parser="glm45", enable_auto_tool_choice=True
        ),
    )


def _parallel(plan: Plan, node: int) -> ParallelSettings:
    """Machine 0 answers HTTP. A machine has copies, or is one of those that share a copy."""
    layout, nodes = plan.best.layout, plan.question.cluster.nodes
    alike = _alike(layout)
    if nodes == 1:
        return alike
    nodes_each = max(1, nodes // layout.dp)
    here = max(1, layout.dp // nodes)
    rank = node % nodes_each
    wishes = replace(alike, master_token=TOKEN, headless=node > 0)
    if nodes_each > 1:
        wishes = replace(
            wishes, nnodes=nodes_each, node_rank=rank, master_addr=f"NODE{node - rank}"
        )
    if layout.dp > 1:
        first = (node // nodes_each) * here
        wishes = replace(
            wishes,
            data_parallel_size_local=here,
            data_parallel_start_rank=first or None,
            data_parallel_address="NODE0",
        )
    return wishes


def _alike(layout: Layout) -> ParallelSettings:
    """What is the same on all machines."""
    return ParallelSettings(
        tensor_parallel_size=layout.tp,
        data_parallel_size=layout.dp,
        enable_expert_parallel=layout.spread,
        expert_parallel_scope="machine" if layout.num_groups > 1 and layout.spread else "all",
    )


def command_lines(plan: Plan, model: str, *, quantize: bool) -> list[str]:
    """One line for each machine; several need TOKEN_LINE before."""
    return [
        shlex.join(["glimt", "serve", model, *_flags(settings)])
        for settings in _of_all_nodes(plan, model, quantize)
    ]


def condensed(plan: Plan, lines: Sequence[str]) -> list[tuple[str, str]]:
    """(where it is typed, line): of many machines with whole copies one line stands for all but the
    first."""
    if len(lines) == 1:
        return [("", lines[0])]
    if len(lines) <= _MOST_LINES or plan.best.layout.tp_crosses_nodes:
        return [(f"machine {node}", line) for node, line in enumerate(lines)]
    here = plan.best.layout.dp // len(lines)
    rank = "--data-parallel-start-rank "
    other = lines[1].replace(f"{rank}{here} ", f"{rank}$(({here} * NODE)) ", 1)
    return [("machine 0", lines[0]), (f"each other, with NODE=1 … NODE={len(lines) - 1}", other)]


def ray_lines(plan: Plan, model: str, *, quantize: bool) -> list[tuple[str, str]]:
    """(what it does, line) of the ways to let a Ray cluster find the machines; none for one."""
    if plan.question.cluster.nodes == 1:
        return []
    placed, each = by_ray(plan, model, quantize=quantize), of_one(plan, model, quantize=quantize)
    words = shlex.join(["glimt", "serve", model, *_flags(placed)])
    lines = [("on one machine of a Ray cluster, which finds the others", words)]
    if each is not None:
        command = shlex.join([model, *_flags(each)])
        app = ["serve", "run", "glimt.placement.serve_app:app", f"command={command}"]
        words = shlex.join([*app, f"max_replicas={plan.question.cluster.nodes}"])
        lines.append(("Ray Serve: a server on each machine, as many as the load needs", words))
    return lines


def by_ray(plan: Plan, model: str, *, quantize: bool) -> Settings:
    """Settings with which Ray places the ranks or the copies, those that share experts together."""
    layout, cluster = plan.best.layout, plan.question.cluster
    parallel = replace(
        _alike(layout),
        nnodes=max(1, layout.tp // cluster.gpus_per_node),
        distributed_executor_backend="ray" if layout.dp == 1 else None,
        data_parallel_backend="ray" if layout.dp > 1 else "mp",
        data_parallel_size_local=layout.sharing if layout.sharing > 1 and not layout.wide else None,
    )
    return replace(settings_of(plan, model, quantize=quantize), parallel=parallel)


def of_one(plan: Plan, model: str, *, quantize: bool) -> Settings | None:
    """Settings of a server on one machine, with its share of the copies; None if that cannot be."""
    layout, cluster = plan.best.layout, plan.question.cluster
    if layout.tp_crosses_nodes or layout.wide:
        return None
    copies = layout.dp // cluster.nodes
    parallel = replace(_alike(layout), data_parallel_size=copies, expert_parallel_scope="all")
    settings = settings_of(plan, model, quantize=quantize)
    if parallel.data_parallel_size > 1:
        return replace(settings, parallel=parallel)
    media = replace(settings.media, mm_processor_cache_type="lru")
    return replace(settings, parallel=parallel, media=media)


def _of_all_nodes(plan: Plan, model: str, quantize: bool) -> list[Settings]:
    nodes = range(plan.question.cluster.nodes)
    return [settings_of(plan, model, quantize=quantize, node=node) for node in nodes]


def refusals(plan: Plan, model: str, *, quantize: bool) -> list[str]:
    """Why this version would not start with these settings; empty if it would."""
    problems: dict[str, None] = {}
    every: list[Settings | None] = [*_of_all_nodes(plan, model, quantize)]
    if plan.question.cluster.nodes > 1:
        every += [by_ray(plan, model, quantize=quantize), of_one(plan, model, quantize=quantize)]
    for settings in every:
        if settings is None:
            continue
        try:
            check(settings)
        except BadSettings as error:
            problems.update(dict.fromkeys(error.problems))
    return list(problems)


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
        if value == getattr(defaults, name) or name == "master_token":
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
