"""Settings and a checkpoint become a plan, or a message that says what to change."""

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from glimt.checkpoint import read_checkpoint
from glimt.config import (
    CacheSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    ServerSettings,
    Settings,
)
from glimt.config_check import check
from glimt.errors import BadSettings, NotEnoughMemory
from glimt.experts.placement import Placement
from glimt.processes.launch import bind, resolved
from glimt.processes.plan import make_plan
from glimt.processes.sizes import StepSizes, memory_sizes
from glimt.processes.starting import Plan
from glimt.tiny.checkpoint import make_tiny_checkpoint


def plan(checkpoint: Path, **groups: Any) -> Plan:
    settings = Settings(model=str(checkpoint), **groups)
    check(settings)
    return make_plan(settings, read_checkpoint(checkpoint))


@pytest.mark.parametrize(
    "wish",
    [
        {"mm_processor_kwargs": '{"size": 5}'},
        {"mm_processor_kwargs": '{"size": {"longest_edge": "much"}}'},
        {"mm_processor_kwargs": '{"size": {"longest_edge": 10}}'},
        {"mm_processor_kwargs": '{"size": {"shortest_edge": 90000, "longest_edge": 80000}}'},
        {"mm_processor_kwargs": '{"size": {"shortest_edge": 0}}'},
        {"mm_processor_kwargs": '{"sharpen": true}'},
        {"media_io_kwargs": '{"video": 3}'},
        {"media_io_kwargs": '{"video": {"fps": 0}}'},
        {"media_io_kwargs": '{"video": {"max_frames": 0}}'},
        {"media_io_kwargs": '{"video": {"num_frames": 8, "max_frames": 4}}'},
        {"media_io_kwargs": '{"video": {"num_frames": -2}}'},
        {"media_io_kwargs": '{"video": {"num_frames": "all"}}'},
        {"media_io_kwargs": '{"audio": {}}'},
        {"limit_mm_per_prompt": '{"image": true}'},
        {"limit_mm_per_prompt": '{"audio": 1}'},
        {"mm_processor_cache_gb": float("nan")},
        {"allowed_local_media_path": "/no/such/folder"},
    ],
    ids=str,
)
def test_media_wishes_that_cannot_be_are_refused_by_the_flags_name(
    checkpoint: Path, wish: dict[str, Any]
) -> None:
    with pytest.raises(BadSettings) as caught:
        plan(checkpoint, media=MediaSettings(**wish))
    [flag] = wish
    assert f"--{flag.replace('_', '-')}" in str(caught.value)


def test_media_wishes_change_the_checkpoints_numbers(checkpoint: Path) -> None:
    media = MediaSettings(
        mm_processor_kwargs='{"size": {"longest_edge": 200704}}',
        media_io_kwargs='{"video": {"fps": 1, "max_frames": 8}}',
        limit_mm_per_prompt='{"image": {"count": 3}}',
    )
    server = plan(checkpoint, media=media).server
    assert server.image.max_pixels == 200_704
    assert (server.video.fps, server.video.max_frames) == (1.0, 8)
    assert (server.max_images, server.max_videos) == (3, 2)


def test_memory_for_pixels_must_hold_what_one_request_may_bring(checkpoint: Path) -> None:
    """As large as can be: two videos of 401,408 pixels and 32 stills of half 100,352, by threes."""
    needed = (2 * 401_408 + 32 * 50_176) * 3 / 2**30
    with pytest.raises(BadSettings, match="--mm-processor-cache-gb"):
        plan(checkpoint, media=MediaSettings(mm_processor_cache_gb=needed * 0.9))
    enough = plan(checkpoint, media=MediaSettings(mm_processor_cache_gb=needed * 1.1))
    assert enough.arena_bytes >= needed * 2**30
    fewer = '{"image": 1, "video": 0}'
    small = MediaSettings(mm_processor_cache_gb=needed / 10, limit_mm_per_prompt=fewer)
    assert plan(checkpoint, media=small).arena_bytes < needed * 2**30


def test_a_short_context_needs_less_memory_for_pixels(checkpoint: Path) -> None:
    """256 tokens of video are 256 times 28 × 28 pixels in two frames."""
    media = MediaSettings(mm_processor_cache_gb=3 * 2**20 / 2**30)
    with pytest.raises(BadSettings):
        plan(checkpoint, media=media)
    plan(checkpoint, media=media, models=ModelSettings(max_model_len="256"))


def test_each_server_process_needs_a_media_worker(checkpoint: Path) -> None:
    three = ParallelSettings(api_server_count=3)
    with pytest.raises(BadSettings, match="--media-workers 2"):
        plan(checkpoint, parallel=three, media=MediaSettings(media_workers=2))
    assert plan(checkpoint, parallel=three).num_media_workers >= 3


def test_quantization_that_the_checkpoint_lacks_is_refused(tmp_path: Path) -> None:
    plain = make_tiny_checkpoint(tmp_path / "plain")
    models = ModelSettings(quantization="compressed-tensors")
    with pytest.raises(BadSettings, match="--quantization fp8"):
        plan(plain, models=models)
    assert plan(make_tiny_checkpoint(tmp_path / "fp8", fp8=True), models=models)


def test_a_context_beyond_the_checkpoints_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    models = ModelSettings(max_model_len="1M")
    with pytest.raises(BadSettings, match="--max-model-len 1048576 is more than the"):
        plan(make_tiny_checkpoint(tmp_path / "tiny"), models=models)


def test_a_socket_of_a_dead_server_is_replaced_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "glimt.sock"
    settings = Settings(model="m", server=ServerSettings(uds=str(path)))
    bind(settings).close()
    bind(settings).close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(BadSettings, match=r"cannot listen on .*: .* give another --uds"):
        bind(settings)
    assert path.read_text() == "precious"


def test_who_finds_the_port_taken_is_told_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(model="m", server=ServerSettings(port=taken.getsockname()[1]))
        with pytest.raises(
            BadSettings, match=r"in use; stop what is there, or give another --port"
        ):
            bind(settings)


def test_what_was_resolved_is_said_in_one_line(checkpoint: Path) -> None:
    text = resolved(plan(checkpoint, server=ServerSettings(api_key=["secret"])))
    for part in ("media_workers=", "media_cache=4.00 GiB", "temperature=1.0", "eos_token_id=["):
        assert part in text
    assert "secret" not in text


def test_seeds_reach_the_half_that_draws_them(checkpoint: Path) -> None:
    drawn = plan(checkpoint)
    assert (drawn.server.seed, drawn.engine.seed) == (None, 0)
    given = plan(checkpoint, models=ModelSettings(seed=7))
    assert (given.server.seed, given.engine.seed) == (7, 7)


def test_a_copy_behind_an_outside_balancer_runs_alone(checkpoint: Path) -> None:
    both = ParallelSettings(data_parallel_size=2, tensor_parallel_size=2)
    assert plan(checkpoint, parallel=both).copies == range(2)
    second = ParallelSettings(data_parallel_size=2, data_parallel_rank=1)
    assert plan(checkpoint, parallel=second).copies == range(1, 2)
    with pytest.raises(BadSettings, match="0 to 1"):
        plan(checkpoint, parallel=ParallelSettings(data_parallel_size=2, data_parallel_rank=2))


def test_a_machine_behind_an_outside_balancer_runs_its_own_copies(checkpoint: Path) -> None:
    last = ParallelSettings(
        data_parallel_size=6, data_parallel_size_local=2, data_parallel_start_rank=4
    )
    made = plan(checkpoint, parallel=last)
    assert (made.copies, made.engine.num_ranks_here) == (range(4, 6), 2)


@pytest.mark.parametrize(
    ("groups", "flag"),
    [
        ({"parallel": ParallelSettings(disable_custom_all_reduce=True)}, "--disable-custom"),
        ({"parallel": ParallelSettings(enable_expert_parallel=True)}, "--enable-expert-parallel"),
        ({"parallel": ParallelSettings(all2all_backend="alltoall")}, "--all2all-backend"),
        ({"models": ModelSettings(trust_remote_code=True)}, "--trust-remote-code"),
        ({"media": MediaSettings(mm_encoder_tp_mode="data")}, "--mm-encoder-tp-mode"),
    ],
)
def test_a_flag_without_effect_says_so(groups: dict[str, Any], flag: str) -> None:
    [note] = check(Settings(model="m", **groups))
    assert note.startswith(flag)
    assert "no effect" in note


@pytest.mark.parametrize(
    "groups",
    [
        {"server": ServerSettings(max_logprobs=-1)},
        {"server": ServerSettings(shutdown_timeout=-1)},
        {"models": ModelSettings(served_model_name=["tiny", ""])},
        {"models": ModelSettings(seed=2**63)},
        {"cache": CacheSettings(gpu_memory_utilization=0)},
    ],
)
def test_numbers_out_of_range_are_refused(groups: dict[str, Any]) -> None:
    with pytest.raises(BadSettings):
        check(Settings(model="m", **groups))


def test_experts_are_placed_as_the_flags_say(checkpoint: Path, tmp_path: Path) -> None:
    def placement(**flags: Any) -> Placement | None:
        wishes = {"tensor_parallel_size": 2, "enable_expert_parallel": True, **flags}
        return plan(checkpoint, parallel=ParallelSettings(**wishes)).engine.expert_placement

    layers = placement(expert_placement_strategy="round_robin")
    assert layers is not None
    assert {*layers.layers.values()} == {((0, 2, 4, 6), (1, 3, 5, 7))}
    file = tmp_path / "placement.json"
    file.write_bytes(msgspec.json.encode(layers))
    assert placement(expert_placement=str(file)) == layers
    assert placement() is None
    for flags, complaint in (
        ({"expert_placement": str(file), "tensor_parallel_size": 4}, "for 2 GPUs .* over 4 here"),
        ({"expert_placement": "/no/file"}, "No such file"),
        ({"expert_placement": str(checkpoint / "config.json")}, "is no expert placement"),
        ({"expert_placement": str(file), "enable_expert_parallel": False}, "needs --enable-expert"),
        ({"expert_placement": "x", "expert_placement_strategy": "round_robin"}, "one or the other"),
    ):
        with pytest.raises(BadSettings, match=complaint):
            placement(**flags)  # type: ignore[arg-type]


def test_copies_share_experts_only_if_there_are_experts_and_copies(
    checkpoint: Path, tmp_path: Path
) -> None:
    def shares(folder: Path, **flags: Any) -> bool:
        return plan(folder, parallel=ParallelSettings(**flags)).shares_experts

    both = {"data_parallel_size": 2, "enable_expert_parallel": True}
    assert shares(checkpoint, **both)
    assert not shares(checkpoint, data_parallel_size=2)
    assert not shares(checkpoint, tensor_parallel_size=2, enable_expert_parallel=True)
    assert not shares(checkpoint, **both, data_parallel_rank=1)
    assert not shares(make_tiny_checkpoint(tmp_path / "dense", variant="dense"), **both)
    with pytest.raises(BadSettings, match="8 experts cannot be divided among 3 GPUs"):
        shares(checkpoint, data_parallel_size=3, enable_expert_parallel=True)


def test_machines_that_share_experts_look_for_the_head_or_that_of_the_first_copy(
    checkpoint: Path,
) -> None:
    def muster(**flags: Any) -> Any:
        wishes = {
            "data_parallel_size": 4,
            "data_parallel_size_local": 2,
            "data_parallel_address": "10.0.0.1",
            "master_token": "a token of sixteen or more",
            "enable_expert_parallel": True,
        }
        made = plan(checkpoint, parallel=ParallelSettings(**{**wishes, **flags}))
        assert made.muster is None or made.shares_experts
        return made.muster

    head = muster()
    assert (head.listens, head.first_copy, head.num_here, head.num_copies) == (True, 0, 2, 4)
    assert (head.port, head.meeting_port) == (29551, 29552)
    node = muster(data_parallel_start_rank=2, headless=True)
    assert (node.listens, node.first_copy) == (False, 2)
    assert node.facts == head.facts
    assert muster(data_parallel_hybrid_lb=True).listens
    assert not muster(data_parallel_start_rank=2).listens
    assert muster(data_parallel_size_local=0).listens
    assert muster(expert_parallel_scope="machine") is None
    assert muster(enable_expert_parallel=False) is None


@pytest.mark.parametrize(
    ("cache", "cure"),
    [
        (CacheSettings(kv_cache_memory_bytes="1M"), "a higher --kv-cache-memory-bytes"),
        (CacheSettings(), "a higher --gpu-memory-utilization"),
    ],
)
def test_too_little_memory_for_one_request_names_the_flag_that_was_given(
    checkpoint: Path, cache: CacheSettings, cure: str
) -> None:
    start = plan(checkpoint, cache=cache).engine
    steps = StepSizes(*(16,) * 8)
    with pytest.raises(NotEnoughMemory, match=cure):
        memory_sizes(start, steps, 8192, page_bytes=2**16, kv_bytes=lambda: 2**20)
