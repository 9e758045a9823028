"""Builds what an engine process runs: model, sizes, executor, scheduler, in timed phases."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from glimt.checkpoint import read_checkpoint
from glimt.engine.expert_meter import ExpertMeter
from glimt.engine.limits import SchedulerLimits, SchedulingPolicy
from glimt.engine.plan import IntArray
from glimt.engine.scheduler import Scheduler
from glimt.engine.work_meter import WorkMeter, WorkSizes
from glimt.experts.placement import by_strategy, shares_of
from glimt.grammar.compiler import GrammarCompiler
from glimt.grammar.vocabulary import Vocabulary
from glimt.kernels.attention import MAX_WIDENED
from glimt.models.config import ModelConfig
from glimt.models.config_json import read_config
from glimt.models.glm4v import Glm4v
from glimt.parallel.mesh import Mesh
from glimt.processes.control import EngineStart
from glimt.processes.loading import load_weights, pick_device, pick_dtype
from glimt.processes.machine import Machine
from glimt.processes.profiling import Profiler
from glimt.processes.ranks import Place, describe_mesh, make_mesh
from glimt.processes.sizes import StepSizes, longest_request, memory_sizes, step_sizes
from glimt.processes.team import Loss, Team, TeamMachine
from glimt.processes.work_sizes import work_sizes
from glimt.runner.build import ExecutorSizes, KvDtype, build_executor, kv_layout
from glimt.runner.graphs import Record, cuda_recorder
from glimt.runner.kv_cache import KvLayout
from glimt.runner.memory import kv_cache_bytes, measure_free, peak_step_bytes, run_largest_step
from glimt.runner.pixels import PixelSource
from glimt.runner.tower_costs import TowerCosts, can_spread, measure_costs
from glimt.wire import EngineInfo

# Whether steps that have other work go on while images are encoded, or wait for them.
ENCODES_BESIDE = True

# Called with the name of a phase, its seconds, and a detail for people.
Report = Callable[[str, float, str], None]


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's executor, and what was resolved with the other ranks."""

    executor: Machine
    limits: SchedulerLimits
    info: EngineInfo
    vocabulary: Vocabulary
    device: torch.device
    work: WorkSizes
    mesh: Mesh
    expert_meter: ExpertMeter | None


@dataclass(frozen=True, slots=True)
class Engine:
    """The two halves of an engine, and what it resolved."""

    scheduler: Scheduler
    executor: Machine | TeamMachine
    info: EngineInfo
    vocabulary: Vocabulary
    mesh: Mesh
    meter: WorkMeter | None  # of what steps cost this process's device, if that is wanted
    expert_meter: ExpertMeter | None  # of what tokens chose, likewise
    overlap: bool  # plan the next step while one runs; a CPU has nothing to overlap with
    team: Team | None = None

    def close(self) -> None:
        """End its threads and its peers."""
        self.scheduler.close()
        if self.team is not None:
            self.team.close()


class _Phases:
    """Times the phases of a start and reports each when it is over."""

    def __init__(self, report: Report) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report

    @contextmanager
    def phase(self, name: str) -> Iterator[list[str]]:
        """`with phases.phase("weights") as detail:`; what is put into `detail` is printed."""
        detail: list[str] = []
        started = time.monotonic()
        yield detail
        self.seconds[name] = time.monotonic() - started
        self._report(name, self.seconds[name], ", ".join(detail))


def build_engine(
    start: EngineStart,
    arenas: Sequence[PixelSource],
    report: Report,
    on_loss: Callable[[Loss], None] = lambda loss: None,
) -> Engine:
    """Build everything on the device, and start the peers on theirs.

    `on_loss` is called in a thread when a peer is lost; then steps raise ReplicaLost.
    Raises StartupError for what the user can mend.
    """
    size = start.tensor_parallel_size
    team = Team(start, on_loss, arenas) if size > 1 else None
    try:
        if team is not None:
            team.wait_present()
        place = Place.of(start, 0, None if team is None else team.meeting)
        rank = build_rank(start, arenas, report, place)
        if team is not None:
            team.wait_ready()
    except BaseException:
        if team is not None:
            team.close()
        raise
    return Engine(
        scheduler=Scheduler(rank.limits, compiler=GrammarCompiler(rank.vocabulary)),
        executor=rank.executor if team is None else TeamMachine(rank.executor, team),
        info=rank.info,
        vocabulary=rank.vocabulary,
        mesh=rank.mesh,
        meter=WorkMeter(rank.work) if start.estimates_work else None,
        expert_meter=rank.expert_meter,
        overlap=start.overlap and rank.device.type != "cpu",
        team=team,
    )


def build_rank(
    start: EngineStart, arenas: Sequence[PixelSource], report: Report, place: Place
) -> Rank:
    """Build one rank. All ranks of a replica call this, and meet in it several times.

    Raises StartupError for what the user can mend.
    """
    phases = _Phases(report)
    device = pick_device(start.device, place)
    with phases.phase("config") as detail:
        checkpoint = read_checkpoint(Path(start.model_path), overrides=start.hf_overrides)
        config = read_config(checkpoint.config, checkpoint.preprocessor_config)
        dtype = pick_dtype(start.dtype, config, device)
        longest = longest_request(start, config.text.max_position_embeddings)
        steps = step_sizes(start, device.type, longest)
        detail.append(f"{config.architecture}, {str(dtype).removeprefix('torch.')} on {device}")
    with phases.phase("ranks") as detail:
        mesh = make_mesh(start, config, place, device)
        detail.append(describe_mesh(mesh, start))
    with phases.phase("vocabulary"):
        vocabulary = Vocabulary.read(checkpoint.tokenizer_path, config.text.vocab_size)
    with phases.phase("weights") as detail:
        model, weights_format = load_weights(start, config, device, dtype, mesh)
        detail.append(weights_format)
    costs = _tower_costs(phases, model, steps, device)
    record = partial(recorder, start, device)
    layout = kv_layout(model, steps.page_size, dtype, _kv_dtype(start))
    with phases.phase("memory") as detail:
        sizes = _fit(start, model, layout, steps, longest, device)
        num_gib = sizes.num_pages * layout.page_bytes / 2**30
        detail.append(f"{sizes.num_pages} pages of {sizes.page_size} tokens, {num_gib:.2f} GiB")
    with phases.phase("executor"):
        executor = Machine(
            model,
            make=lambda model: build_executor(
                model, layout, sizes, arenas, device, record(), tower_costs=costs
            ),
            load=lambda: load_weights(start, config, device, dtype, mesh)[0],
            device=device,
            profiler=Profiler(start.profiler, place.name),
            counts_experts=start.counts_experts,
        )
    with phases.phase("warm-up"):
        _warm_up(model, layout, sizes, steps, device)
    with phases.phase("graphs"):
        executor.record_graphs()
    executor.forget_counts()
    limits = _limits(start, config, steps, sizes)
    info = _info(start, config, limits, layout, device, weights_format, phases.seconds)
    return Rank(
        executor,
        limits,
        info,
        vocabulary,
        device,
        work_sizes(model, layout),
        mesh,
        _expert_meter(executor, mesh, config),
    )


def _tower_costs(
    phases: "_Phases", model: Glm4v, steps: StepSizes, device: torch.device
) -> TowerCosts | None:
    """Before memory is measured, for exchanges take some. On CPUs images are dealt out."""
    if device.type == "cpu" or not can_spread(model):
        return None
    with phases.phase("tower") as detail:
        max_patches = steps.pass_tokens * model.config.vision.merge_size**2
        costs = measure_costs(model, max_patches, device)
        detail.append(
            f"an image of 1024 tokens: {1e3 * costs.of_dealt([4096], model.mesh.tp_size):.1f} ms"
            f" on one GPU, {1e3 * costs.of_spread([4096]):.1f} ms on all"
        )
    return costs


def _expert_meter(machine: Machine, mesh: Mesh, config: ModelConfig) -> ExpertMeter | None:
    if machine.counts is None or config.text.moe is None:
        return None
    layers, shares = machine.counts.layers, None
    if mesh.ep_size > 1:
        count = config.text.moe.num_experts
        shares = shares_of(mesh.placement or by_strategy("linear", layers, count, mesh.ep_size))

    def read() -> IntArray | None:
        return None if machine.counts is None else machine.counts.latest()

    return ExpertMeter(read, layers, shares)


def _info(
    start: EngineStart,
    config: ModelConfig,
    limits: SchedulerLimits,
    layout: KvLayout,
    device: torch.device,
    weights_format: str,
    phases_s: dict[str, float],
) -> EngineInfo:
    """What the servers are told."""
    return EngineInfo(
        max_model_len=limits.max_model_len,
        vocab_size=config.text.vocab_size,
        num_pages=limits.num_pages,
        page_size=limits.page_size,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        max_image_tokens=limits.max_image_tokens,
        max_logprobs=start.max_logprobs,
        device=str(device),
        tensor_parallel_size=start.tensor_parallel_size,
        dtype=str(pick_dtype(start.dtype, config, device)).removeprefix("torch."),
        kv_cache_dtype=str(layout.dtype).removeprefix("torch."),
        weights_format=weights_format,
        phases_s=phases_s,
    )


def _limits(
    start: EngineStart, config: ModelConfig, steps: StepSizes, sizes: ExecutorSizes
) -> SchedulerLimits:
    return SchedulerLimits(
        num_pages=sizes.num_pages,
        page_size=sizes.page_size,
        max_num_seqs=steps.max_num_seqs,
        max_num_batched_tokens=steps.max_num_batched_tokens,
        max_model_len=sizes.max_model_len,
        image_budget=steps.image_budget,
        largest_image=steps.largest_image,
        encodes_beside=ENCODES_BESIDE,
        image_cache_tokens=steps.image_cache_tokens,
        prefix_caching=start.prefix_caching,
        follow_tokens=steps.follow_tokens,
        policy=_policy(start.policy),
        vocab_size=config.text.vocab_size,
        watched_pages=start.watched_pages,
    )


def _kv_dtype(start: EngineStart) -> KvDtype:
    return "fp8" if start.kv_cache_dtype == "fp8" else "auto"


def _policy(name: str) -> SchedulingPolicy:
    return "priority" if name == "priority" else "fcfs"


def recorder(start: EngineStart, device: torch.device) -> Record | None:
    """What records graphs of decode steps, where there are any."""
    return None if start.enforce_eager or device.type == "cpu" else cuda_recorder()


def _fit(
    start: EngineStart,
    model: Glm4v,
    layout: KvLayout,
    steps: StepSizes,
    longest: int,
    device: torch.device,
) -> ExecutorSizes:
    """How much fits beside weights and the largest step."""
    patches_of_token = model.config.vision.merge_size**2
    sizes = ExecutorSizes(
        num_pages=1,
        page_size=steps.page_size,
        max_num_seqs=steps.max_num_seqs,
        max_model_len=longest,
        max_patches=steps.pass_tokens * patches_of_token,
        max_image_patches=steps.largest_image * patches_of_token,
        image_cache_tokens=steps.image_cache_tokens,
    )

    def free_for_kv() -> int:
        tokens = steps.max_num_batched_tokens
        peak = peak_step_bytes(model, layout, sizes, tokens, device, recorder(start, device))
        mine = kv_cache_bytes(measure_free(device), device, start.memory_utilization, peak)
        return model.mesh.least(mine)

    memory = memory_sizes(start, steps, longest, layout.page_bytes, free_for_kv)
    return replace(sizes, num_pages=memory.num_pages, max_model_len=memory.max_model_len)


def _warm_up(
    model: Glm4v, layout: KvLayout, sizes: ExecutorSizes, steps: StepSizes, device: torch.device
) -> None:
    """One small step through every part, so that the first request pays for no first use.

    With an FP8 cache a second one, of more context than attention widens: another kernel reads it.
    """
    small = ExecutorSizes(
        num_pages=1,
        page_size=sizes.page_size,
        max_num_seqs=1,
        max_model_len=sizes.page_size,
        max_patches=model.config.vision.merge_size**2 * 4,
    )
    num_tokens = min(8, steps.max_num_batched_tokens)
    run_largest_step(model, layout, small, num_tokens, device)
    if layout.dtype.itemsize == 1 and device.type == "cuda":
        longer = replace(small, max_model_len=MAX_WIDENED + sizes.page_size)
        run_largest_step(model, layout, longer, num_tokens, device, context=longer.max_model_len)
