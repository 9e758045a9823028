"""The executor on a GPU: streams, pinned copies, and steps in flight change no token."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from glimt.engine.plan import RowWork, StepPlan
from glimt.kernels import draws, sampling
from glimt.kernels.draws import add_noise_, least_kept, mask_top_k_top_p_
from glimt.models.config_json import read_config
from glimt.models.dummy import fill_dummy
from glimt.models.glm4v import Glm4v
from glimt.models.names import fp8_modules
from glimt.parallel.mesh import Mesh
from glimt.runner import streams
from glimt.runner.build import ExecutorSizes, kv_layout
from glimt.runner.graphs import Work, cuda_recorder
from glimt.runner.memory import kv_cache_bytes, measure_free, peak_step_bytes
from glimt.runner.staging import ReturnPath, to_device
from tests.support.configs import full_size, tiny_config
from tests.support.schedules import Schedule
from tests.support.tiny_model import Album, make_ask, make_executor, new_row, tiny_model

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


def test_arrays_arrive_with_their_types_and_shapes(gpu: torch.device) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "bytes": generator.integers(0, 255, 3).astype(np.uint8),
        "flags": generator.random(5) > 0.5,
        "empty": np.zeros(0, np.int64),
        "numbers": generator.random((3, 7)).astype(np.float32),
        "ids": generator.integers(0, 9, (2, 2)).astype(np.int32),
        "strided": np.arange(20, dtype=np.int64)[::3],
    }
    for _ in range(3):
        sent = to_device(arrays, gpu)
        (returned,) = ReturnPath(gpu).send([sent["numbers"] * 2]).wait()
        assert np.array_equal(returned.numpy(), arrays["numbers"] * 2)
        for name, array in arrays.items():
            assert np.array_equal(sent[name].cpu().numpy(), array)


@pytest.mark.parametrize("kind", ["glm4v", "glm4v_moe"])
def test_steps_in_flight_on_a_gpu_change_no_token(gpu: torch.device, kind: str) -> None:
    album = Album()
    asks = [
        make_ask(album, "tit", 1),
        make_ask(album, "tt", 2, temperature=1.0, top_p=0.9, logprobs=3),
        make_ask(album, "tvt", 3, repetition_penalty=1.2),
        make_ask(album, "tbtt", 4, temperature=0.7, top_k=10),
    ]
    expected = Schedule(make_executor(tiny_model(kind), album), asks, whole=True).run()
    for seed in range(3):
        executor = make_executor(tiny_model(kind, gpu), album)
        assert Schedule(executor, asks, seed=seed, depth=1 + seed).run() == expected


def test_a_measured_step_leaves_room_for_itself(gpu: torch.device) -> None:
    model = tiny_model("glm4v_moe", gpu)
    layout = kv_layout(model, 64, torch.float32, "auto")
    sizes = ExecutorSizes(
        num_pages=4, page_size=64, max_num_seqs=16, max_model_len=256, max_patches=4096
    )
    before = measure_free(gpu)
    without = peak_step_bytes(model, layout, sizes, 512, gpu)
    peak = peak_step_bytes(model, layout, sizes, 512, gpu, cuda_recorder())
    assert 0 < without < peak < 2**32
    assert measure_free(gpu).free_bytes >= before.free_bytes - 2**28
    assert 0 < kv_cache_bytes(before, gpu, 0.9, peak) < before.free_bytes


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_decode_step_with_every_feature_never_waits_for_the_device(gpu: torch.device) -> None:
    album = Album()
    features = [
        {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "min_p": 0.01},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.3, "presence_penalty": 0.2},
        {"bad_words": ((1, 2), (3,)), "logit_bias": {5: 2.0}, "logprobs": 4},
        {"allowed_token_ids": tuple(range(40)), "min_tokens": 4, "eos_token_ids": (6, 7)},
        {"temperature": 0.5, "top_p": 0.8},
    ]
    asks = [make_ask(album, "tt", n, **fields) for n, fields in enumerate(features)]
    answers = []
    for device in (torch.device("cpu"), gpu):
        executor = make_executor(tiny_model("glm4v", device), album)
        rows = tuple(new_row(ask, n, tuple(range(4 * n, 4 * n + 4))) for n, ask in enumerate(asks))
        work = tuple(RowWork(n, 0, 6, samples=True) for n in range(len(asks)))
        steps = [executor.launch(StepPlan(1, new_rows=rows, work=work))]
        try:
            torch.cuda.set_sync_debug_mode("error")
            for index in range(6, 12):
                work = tuple(RowWork(n, index, 1, samples=True) for n in range(len(asks)))
                steps.append(executor.launch(StepPlan(index, work=work)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        answers.append([step.result().token_ids for step in steps])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", ["glm4v", "glm4v_moe"])
def test_graphs_on_a_gpu_change_no_token(gpu: torch.device, kind: str) -> None:
    album = Album()
    asks = [
        make_ask(album, "tit", 1),
        make_ask(album, "tt", 2, temperature=1.0, top_p=0.9, logprobs=3),
        make_ask(album, "tvt", 3, temperature=0.8),
        make_ask(album, "tbtt", 4, temperature=0.7, top_k=10),
        make_ask(album, "t", 5, repetition_penalty=1.2),
    ]
    expected = Schedule(make_executor(tiny_model(kind), album), asks, whole=True).run()
    for seed in range(4):
        executor = make_executor(tiny_model(kind, gpu), album, record=cuda_recorder())
        assert Schedule(executor, asks, seed=seed, depth=1 + seed % 3).run() == expected


@pytest.mark.parametrize("with_graphs", [False, True])
@pytest.mark.parametrize("num_sms", [0, 64])
def test_a_tower_on_its_own_stream_changes_no_token(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, with_graphs: bool, num_sms: int
) -> None:
    """Images begun early, read late and dropped in between, in the allocator's used memory."""
    monkeypatch.setattr(streams, "OWN_STREAM", True)
    if num_sms and not hasattr(streams.GreenContext, "Stream"):
        pytest.skip("this torch makes no streams of a part of the GPU")
    monkeypatch.setattr(streams, "TOWER_SMS", num_sms)
    streams.two_streams.cache_clear()
    album = Album()
    asks = [make_ask(album, layout, n) for n, layout in enumerate(("tbt", "tit", "tvt", "t") * 2)]
    expected = Schedule(make_executor(tiny_model("glm4v_moe"), album), asks, whole=True).run()
    for seed in range(6):
        record = cuda_recorder() if with_graphs else None
        executor = make_executor(tiny_model("glm4v_moe", gpu), album, record=record)
        assert executor.streams.are_two
        found = Schedule(executor, asks, seed=seed, depth=1 + seed % 3, ahead=0.5).run()
        assert found == expected
    streams.two_streams.cache_clear()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_an_image_beside_decoding_rows_never_waits_for_the_device(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "OWN_STREAM", True)
    streams.two_streams.cache_clear()
    album = Album()
    text, *others = [make_ask(album, layout, n) for n, layout in enumerate(("tt", "tbt", "tbt"))]
    executor = make_executor(dummy_model(gpu, None, fp8=True), album, page_size=16)
    rows = (new_row(text, 0, (0, 1)),)
    executor.launch(StepPlan(0, new_rows=rows, work=(RowWork(0, 0, 6, samples=True),))).result()
    told: list[bytes] = []
    at = 6
    try:
        for ask in others:
            steps = []
            for encode in (ask.images, (), ()):
                work = (RowWork(0, at, 1, samples=True),)
                steps.append(executor.launch(StepPlan(at, encode=encode, work=work)))
                at += 1
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            told += [key for step in steps for key in step.result().encoded]
            torch.cuda.set_sync_debug_mode("error")  # the first one compiles
    finally:
        torch.cuda.set_sync_debug_mode("default")
        streams.two_streams.cache_clear()
    assert told == [image.content_hash for ask in others for image in ask.images]


@cache
def dummy_model(gpu: torch.device, num_layers: int | None, fp8: bool) -> Glm4v:
    """Random weights in bfloat16 or FP8: a tiny model, or layers of GLM-4.5V's size."""
    sizes = tiny_config("glm4v_moe") if num_layers is None else full_size(num_layers)
    config = read_config(sizes)
    with torch.device("meta"):
        model = Glm4v(config, Mesh.single(), fp8=fp8_modules(config) if fp8 else frozenset())
    fill_dummy(model, gpu, torch.bfloat16, seed=1)
    return model


@pytest.mark.parametrize("num_layers", [None, 2], ids=["tiny", "full size, two layers"])
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("num_rows", [1, 11])
def test_a_replay_gives_what_its_work_gives(
    gpu: torch.device,
    num_layers: int | None,
    fp8: bool,
    kv_dtype: str,
    num_rows: int,
) -> None:
    """The same padded steps, done as they come and replayed: the same kernels on the same
    numbers."""
    model = dummy_model(gpu, num_layers, fp8)
    album = Album()
    sampling: list[dict[str, Any]] = [{}, {"temperature": 1.0}, {"temperature": 1, "top_p": 0.9}]
    asks = [
        make_ask(album, "t" * (2 + n % 3), n, **sampling[(n + num_rows) % 3])
        for n in range(num_rows)
    ]
    answers = []
    for record in (again, cuda_recorder()):
        executor = make_executor(
            model,
            album,
            num_pages=64,
            page_size=16,
            max_num_seqs=12,
            kv_dtype=kv_dtype,
            record=record,
        )
        pages = [tuple(range(3 * n, 3 * n + 3)) for n in range(num_rows)]
        rows = tuple(new_row(ask, n, pages[n]) for n, ask in enumerate(asks))
        lengths = [len(ask.token_ids) for ask in asks]
        work = tuple(RowWork(n, 0, length, samples=True) for n, length in enumerate(lengths))
        steps = [executor.launch(StepPlan(0, new_rows=rows, work=work))]
        for index in range(12):
            work = tuple(
                RowWork(n, length + index, 1, samples=True) for n, length in enumerate(lengths)
            )
            steps.append(executor.launch(StepPlan(1 + index, work=work)))
        answers.append([step.result().token_ids for step in steps])
    assert answers[0] == answers[1]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_replayed_step_never_waits_for_the_device(gpu: torch.device) -> None:
    album = Album()
    ask = make_ask(album, "tt", 1, temperature=0.8, top_p=0.9)
    # Experts in float32 have no kernel, and their definition waits for the device.
    model = dummy_model(gpu, None, fp8=True)
    executor = make_executor(model, album, page_size=16, record=cuda_recorder())
    row = new_row(ask, 0, tuple(range(6)))
    steps = [
        executor.launch(StepPlan(0, new_rows=(row,), work=(RowWork(0, 0, 6, samples=True),))),
        executor.launch(StepPlan(1, work=(RowWork(0, 6, 1, samples=True),))),
    ]
    try:
        torch.cuda.set_sync_debug_mode("error")
        for index in range(7, 12):
            work = (RowWork(0, index, 1, samples=True),)
            steps.append(executor.launch(StepPlan(index, work=work)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(step.result().token_ids for step in steps)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_prompt_with_an_image_never_waits_for_the_device(gpu: torch.device) -> None:
    album = Album()
    asks = [make_ask(album, "tbt", seed) for seed in range(3)]
    executor = make_executor(dummy_model(gpu, None, fp8=True), album, page_size=16)
    steps = []
    try:
        for row, ask in enumerate(asks):
            pages = tuple(range(4 * row, 4 * row + 4))
            work = (RowWork(row, 0, len(ask.token_ids), samples=True),)
            new = (new_row(ask, row, pages),)
            steps.append(executor.launch(StepPlan(row, new_rows=new, encode=ask.images, work=work)))
            torch.cuda.set_sync_debug_mode("error")  # the first one compiles
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(step.result().token_ids for step in steps)


def again(work: Work) -> Work:
    """Records nothing."""
    return work


@pytest.mark.parametrize("num_rows", [1, 17])
def test_noise_on_a_gpu_is_that_of_the_definition(gpu: torch.device, num_rows: int) -> None:
    seed = torch.arange(num_rows) * 12_345_678_901
    index, is_random = torch.arange(num_rows) + 7, torch.arange(num_rows) != 3
    expected = torch.zeros(num_rows, 151552)
    sampling.add_noise_(expected, seed, index, is_random)
    got = torch.zeros(num_rows, 151552, device=gpu)
    add_noise_(got, seed.to(gpu), index.to(gpu), is_random.to(gpu))
    torch.testing.assert_close(got.cpu(), expected, rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("num_rows", [1, 6])
def test_cuts_on_a_gpu_are_those_that_sorting_finds(gpu: torch.device, num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    scores = (torch.randn(num_rows, 151552, generator=generator) * 3).to(gpu)
    top_k = torch.tensor([151552, 50, 1000, 151552, 2, 20_000][:num_rows], device=gpu)
    top_p = torch.tensor([0.9, 1.0, 0.5, 0.01, 0.6, 0.999][:num_rows], device=gpu)
    found, defined = (each.clone() for each in (scores, scores))
    mask_top_k_top_p_(found, top_k, top_p, 151552)
    least = sampling.least_kept(defined, top_k, top_p, 151552)
    kept = (found > sampling.NEVER).sum(1), (scores >= least[:, None]).sum(1)
    # sums in float32 and in integers may differ at the edge of p
    assert ((kept[0] - kept[1]).abs() <= 1 + kept[1] // 1000).all()


@pytest.mark.parametrize("num_rows", [1, 6])
@pytest.mark.parametrize("by_kernel", [False, True])
def test_cuts_of_few_candidates_on_a_gpu_are_those_that_sorting_finds(
    gpu: torch.device, num_rows: int, by_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "FEW_BY_KERNEL", by_kernel)
    generator = torch.Generator().manual_seed(num_rows)
    scores = (torch.randn(num_rows, 151552, generator=generator) * 3).to(gpu)
    top_k = torch.tensor([50, 1, 2, 151552, 64, 20][:num_rows], device=gpu)
    top_p = torch.tensor([0.9, 1.0, 0.6, 1.0, 0.01, 1.0][:num_rows], device=gpu)
    found = least_kept(scores, top_k, top_p, 64)
    kept = [
        (scores >= least[:, None]).sum(1)
        for least in (found, sampling.least_kept(scores, top_k, top_p, 151552))
    ]
    # sums in float32 and in integers may differ at the edge of p
    assert ((kept[0] - kept[1]).abs() <= (top_p < 1.0)).all()


@pytest.mark.parametrize("num_layers", [None, 2], ids=["tiny", "full size, two layers"])
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_replayed_prompts_give_what_their_work_gives(
    gpu: torch.device, num_layers: int | None, fp8: bool
) -> None:
    """Prompts of one size one after the other, each beside a row that decodes. The first is
    computed as it comes, the second recorded, the others replayed without waiting."""
    model, album = dummy_model(gpu, num_layers, fp8), Album()
    first = make_ask(album, "tt", 9)
    asks = [make_ask(album, "t" * 110, n, temperature=1.0) for n in range(6)]
    length = len(first.token_ids)
    answers = []
    for record in (again, cuda_recorder()):
        limits: dict[str, Any] = {"max_model_len": 400, "num_pages": 200, "page_size": 16}
        executor = make_executor(model, album, record=record, **limits)
        work = RowWork(0, 0, length, samples=True)
        start = StepPlan(0, new_rows=(new_row(first, 0, (0, 1)),), work=(work,))
        steps = [executor.launch(start)]
        try:
            for n, ask in enumerate(asks):
                decoding = RowWork(0, length + n, 1, samples=True)
                prompt = RowWork(1 + n, 0, len(ask.token_ids), samples=True)
                row = new_row(ask, 1 + n, tuple(range(2 + 24 * n, 26 + 24 * n)))
                plan = StepPlan(1 + n, new_rows=(row,), work=(decoding, prompt))
                steps.append(executor.launch(plan))
                if n >= 2:
                    torch.cuda.set_sync_debug_mode("error")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        answers.append([step.result().token_ids for step in steps])
    assert answers[0] == answers[1]
