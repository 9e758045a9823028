"""The experts' products of very few tokens without tensor cores, on a GPU."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton has packages for Linux only")

from glimt.kernels import Fp8Mlp, triton_experts, triton_rows  # noqa: E402
from glimt.kernels.reference import QuantizedRows  # noqa: E402
from glimt.kernels.tiles import ExpertTile  # noqa: E402
from tests.kernels.test_triton_on_cuda import choices, mlps, randn  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("num_tokens", [1, 3, 4])
@pytest.mark.parametrize(
    ("width", "shared_width", "shift"),
    [(1408, 1408, 0), (704, 704, 0), (352, 352, 64), (1408, 704, 64)],
)
def test_rows_are_those_of_the_tensor_cores(
    num_tokens: int, width: int, shared_width: int, shift: int
) -> None:
    routed = mlps(32 if shift else 128, width, 4096)
    shared = Fp8Mlp(*(tensor[0] for tensor in mlps(1, shared_width, 4096)))
    weights, experts = choices(num_tokens, 128, skewed=False)
    x = randn(num_tokens, 4096, seed=1)
    rows = QuantizedRows(x, *triton_rows.quantize_rows(x))
    given = (rows, weights, experts - shift, routed, shared)
    expected = triton_experts.fp8_experts(*given).float()
    for first, second in (
        (ExpertTile(4, 512, 1, 3, "fma"), ExpertTile(4, 512, 1, 3, "fma")),
        (ExpertTile(8, 512, 4, 2, "fma"), ExpertTile(16, 128, 2, 2, "fma")),
    ):
        got = triton_experts.fp8_experts(*given, first, second)
        assert ((got.float() - expected).norm() / expected.norm()).item() < 0.01
        for _ in range(50):
            assert torch.equal(triton_experts.fp8_experts(*given, first, second), got)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = triton_experts.fp8_experts(*given, first, second)
        differs = torch.zeros(1, dtype=torch.bool, device="cuda")
        for _ in range(1000):
            out.fill_(torch.nan)
            graph.replay()
            differs |= (out != got).any()
        assert not differs.item()
