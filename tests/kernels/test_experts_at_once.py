"""Both products of few tokens' experts in one launch: what it compiles to, and its bits."""

import re
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton has packages for Linux only")

from glimt import kernels  # noqa: E402
from glimt.kernels import Fp8Mlp, QuantizedRows, triton_experts  # noqa: E402
from tests.kernels.test_compile_sm90 import meta, mlp  # noqa: E402
from tests.kernels.test_triton_on_cuda import choices, mlps, randn  # noqa: E402
from tests.support.hopper import Binary, caught_launches, compile_launch  # noqa: E402
from tests.support.poison import poisoned_allocations  # noqa: E402

compiles = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="kernels are interpreted")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_allocations():
        yield


def at_once(monkeypatch: pytest.MonkeyPatch, num_tokens: int, num_held: int) -> None:
    monkeypatch.setattr(triton_experts, "AT_ONCE", num_tokens)
    monkeypatch.setattr(triton_experts, "NUM_HELD", num_held)


def compiled(num_tokens: int) -> Binary:
    """The kernel for the 106B models on one Hopper."""
    values, number = torch.float8_e4m3fn, torch.float32
    q, scale = meta(num_tokens, 4096, dtype=values), meta(num_tokens, 1, dtype=number)
    weights, experts = meta(num_tokens, 8, dtype=number), meta(num_tokens, 8, dtype=torch.int64)
    rows = QuantizedRows(meta(num_tokens, 4096), q, scale)
    with caught_launches() as launches:
        triton_experts.fp8_experts(rows, weights, experts, mlp(128), mlp())
    (both,) = (each for each in launches if each.kernel.__name__ == "experts_kernel")
    return compile_launch(both)


@compiles
@pytest.mark.parametrize(
    ("num_tokens", "num_held", "programs"),
    [
        (1, 256, 5),
        pytest.param(1, 0, 5, marks=pytest.mark.slow),
        pytest.param(1, 512, 4, marks=pytest.mark.slow),
        pytest.param(16, 256, 3, marks=pytest.mark.slow),
    ],
)
def test_programs_wait_for_nothing_but_inner_rows(
    num_tokens: int,
    num_held: int,
    programs: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    at_once(monkeypatch, num_tokens, num_held)
    binary = compiled(num_tokens)
    assert binary.stack_bytes == 0
    assert binary.count("QGMMA") > 0
    assert binary.count("HMMA") == binary.count("HGMMA") == 0
    assert binary.count("LDG.E.U8") == binary.count("LDGSTS.E.U8") == 0
    # So many programs at a time on a multiprocessor, each of which takes 1 KiB more than its own.
    assert programs * (binary.shared_bytes + 1024) <= 228 * 1024
    assert programs * 128 * binary.registers <= 64 * 1024
    # What all threads of a program wrote is written before it counts.
    assert binary.count("MEMBAR.ALL.GPU") == binary.count("REDG.E.ADD.STRONG.GPU") == 1
    counting = binary.sass.index("REDG.E.ADD.STRONG.GPU")
    assert "MEMBAR.ALL.GPU" in binary.sass[counting - 1000 : counting]
    # Before inner rows are whole only weights and their scales are read. After that the cache's
    # old lines are void, and the inner rows come.
    leaving = binary.sass.index("ATOMG.E.ADD.STRONG.GPU")
    second = binary.sass[binary.sass.index("LDG.E.STRONG.GPU") : leaving]
    waits, after = second.rsplit("CCTL.IVALL", 1)
    held = re.findall(r"LDG\.E\.EF\.128", binary.sass)
    assert len(held) == waits.count("LDG.E.EF.128") == num_held * 64 // 16 // 128
    assert "LDGSTS" not in waits
    assert "LDG.E.128" not in waits
    assert "LDGSTS.E.BYPASS.128" in after
    assert "LDG.E.128" in after  # the largest values


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(
    ("width", "shared_width", "shift", "num_tokens", "num_held"),
    [
        *((1408, 1408, 0, *case) for case in product((1, 3, 4, 5, 16, 64), (0, 256, 512))),
        *((704, 704, 0, *case) for case in product((1, 4, 16), (256, 512))),
        *((352, 352, 64, *case) for case in product((1, 4, 16), (256, 512))),
        *((1408, 704, 64, *case) for case in product((1, 4, 16), (0, 256))),
        (1408, 1408, 0, 1, 1024),
    ],
)
def test_the_bits_are_those_of_two_launches(
    width: int,
    shared_width: int,
    shift: int,
    num_tokens: int,
    num_held: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    routed = mlps(32 if shift else 128, width, 4096)  # with a shift, experts of other ranks
    shared = Fp8Mlp(*(tensor[0] for tensor in mlps(1, shared_width, 4096)))
    weights, experts = choices(num_tokens, 128, skewed=False)
    x, experts = randn(num_tokens, 4096, seed=1), experts - shift
    both = partial(kernels.fp8_moe, x, weights, experts, routed, shared)
    alone = partial(kernels.fp8_grouped_experts, x, weights, experts, *routed)
    expected, expected_alone = both(), alone()
    at_once(monkeypatch, num_tokens, num_held)
    for _ in range(50):
        assert torch.equal(both(), expected)
        assert torch.equal(alone(), expected_alone)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = both()
    differs = torch.zeros(1, dtype=torch.bool, device="cuda")
    for number in range(1000):
        out.fill_(torch.nan)
        graph.replay()
        differs |= (out != expected).any()
        if number % 100 == 0:  # launches of both kinds share their counts
            assert torch.equal(both(), expected)
    assert not differs.item()


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("num_tokens", [1, 4])
def test_layers_on_two_streams_do_not_wait_for_each_other(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [(mlps(128, 1408, 4096), mlps(1, 1408, 4096)) for _ in range(2)]
    x, (weights, experts) = randn(num_tokens, 4096), choices(num_tokens, 128, skewed=False)
    calls = [
        partial(kernels.fp8_moe, x, weights, experts, routed, Fp8Mlp(*(t[0] for t in one)))
        for routed, one in layers
    ]
    expected = calls[0]()
    at_once(monkeypatch, num_tokens, 256)
    streams, graphs = [torch.cuda.Stream() for _ in calls], []
    for call in calls:
        assert torch.equal(call(), expected)
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            outs = [call() for _ in range(20)]
        calls[len(graphs) - 1] = partial(torch.stack, outs)
    torch.cuda.synchronize()
    for _ in range(100):
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for found in calls:
        assert torch.equal(found(), expected.expand_as(found()))
