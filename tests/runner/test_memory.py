"""Sizes of the KV cache and of what is free."""

from typing import Any

import pytest
import torch

from glimt.errors import NotEnoughMemory
from glimt.layers.attention import Step
from glimt.runner import build, memory
from glimt.runner.build import ExecutorSizes, KvDtype, kv_layout
from glimt.runner.kv_cache import KvLayout
from glimt.runner.memory import (
    MAX_CPU_KV_BYTES,
    DeviceMemory,
    kv_cache_bytes,
    measure_free,
    peak_step_bytes,
    record_largest_graphs,
    run_largest_step,
)
from tests.runner.test_graphs import Recorder
from tests.support.tiny_model import CPU, tiny_model

GIB = 2**30
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_page_costs_what_its_tensors_take(dtype: torch.dtype) -> None:
    layout = KvLayout(num_layers=3, num_kv_heads=2, head_dim=32, page_size=8, dtype=dtype)
    cache = layout.allocate(5, CPU)
    tensors = [*cache.layers, *(cache.scales or ())]
    assert sum(t.numel() * t.itemsize for t in tensors) == 5 * layout.page_bytes
    assert layout.page_bytes == 8 * layout.token_bytes
    assert cache.layers[0].shape == (5, 2, 2, 8, 32)
    assert (cache.scales is not None) == (dtype == torch.float8_e4m3fn)
    assert all(tensor.float().isfinite().all() for tensor in tensors)


def test_fp8_pages_are_e4m3_with_scales_and_others_of_the_compute_type() -> None:
    model = tiny_model("glm4v")
    assert kv_layout(model, 16, torch.bfloat16, "auto").dtype == torch.bfloat16
    assert kv_layout(model, 16, torch.bfloat16, "fp8").has_scales


def test_free_memory_of_this_machine_is_within_its_total() -> None:
    memory = measure_free(CPU)
    assert 0 < memory.free_bytes <= memory.total_bytes


def test_a_gpu_gives_its_share_less_what_is_in_use_and_a_step() -> None:
    memory = DeviceMemory(free_bytes=60 * GIB, total_bytes=100 * GIB)
    assert kv_cache_bytes(memory, CUDA, 0.9, 10 * GIB) == 40 * GIB


def test_a_cpu_gives_a_share_of_what_is_free_up_to_a_limit() -> None:
    assert kv_cache_bytes(DeviceMemory(2 * GIB, 64 * GIB), CPU, 0.5, 0) == GIB
    assert kv_cache_bytes(DeviceMemory(60 * GIB, 64 * GIB), CPU, 0.9, 0) == MAX_CPU_KV_BYTES


def test_no_memory_left_is_said_in_words_of_the_flags() -> None:
    memory = DeviceMemory(free_bytes=10 * GIB, total_bytes=100 * GIB)
    with pytest.raises(NotEnoughMemory, match="--gpu-memory-utilization"):
        kv_cache_bytes(memory, CUDA, 0.9, 0)


@pytest.mark.parametrize(("seqs", "tokens", "length"), [(4, 16, 64), (8, 8, 64), (2, 40, 10)])
def test_the_largest_step_runs_within_any_limits(seqs: int, tokens: int, length: int) -> None:
    model = tiny_model("glm4v_moe")
    layout = kv_layout(model, 4, torch.float32, "auto")
    sizes = ExecutorSizes(
        num_pages=1, page_size=4, max_num_seqs=seqs, max_model_len=length, max_patches=20
    )
    run_largest_step(model, layout, sizes, tokens, CPU)
    assert peak_step_bytes(model, layout, sizes, tokens, CPU) == 0


@pytest.mark.parametrize(("kv_dtype", "num_pages"), [("auto", 2 * 4), ("fp8", 2 * 5)])
def test_the_largest_step_has_as_much_context_as_attention_widens(
    kv_dtype: KvDtype, num_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_WIDENED", 43)
    model = tiny_model("glm4v_moe")
    layout = kv_layout(model, 4, torch.float32, kv_dtype)
    sizes = ExecutorSizes(
        num_pages=1, page_size=4, max_num_seqs=2, max_model_len=64, max_patches=20
    )
    seen: list[int] = []
    decode = model.decode

    def counted(x_TD: torch.Tensor, step: Step, *rest: Any) -> torch.Tensor:
        seen.append(step.num_chunk_pages)
        assert len(x_TD) in (16, 32)
        return decode(x_TD, step, *rest)

    monkeypatch.setattr(model, "decode", counted)
    run_largest_step(model, layout, sizes, 32, CPU)
    assert max(seen) == num_pages
    run_largest_step(model, layout, sizes, 32, CPU, context=60)
    assert max(seen) == 2 * 15


@pytest.mark.parametrize("prompt_graphs", [False, True])
def test_the_largest_graphs_are_those_that_are_made(
    prompt_graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits and draw of decode steps; prompts are computed only where graphs are made of them."""
    monkeypatch.setattr(build, "PROMPT_GRAPHS", prompt_graphs)
    model, recorder = tiny_model("glm4v_moe"), Recorder()
    sizes = ExecutorSizes(
        num_pages=1, page_size=4, max_num_seqs=3, max_model_len=120, max_patches=20
    )
    layout = kv_layout(model, 4, torch.float32, "auto")
    lengths: list[int] = []
    decode = model.decode

    def counted(x_TD: torch.Tensor, *rest: Any) -> torch.Tensor:
        lengths.append(len(x_TD))
        return decode(x_TD, *rest)

    monkeypatch.setattr(model, "decode", counted)
    record_largest_graphs(model, layout, sizes, CPU, recorder)
    assert recorder.recorded == 2 + prompt_graphs
    assert (max(lengths) > 3) == prompt_graphs
