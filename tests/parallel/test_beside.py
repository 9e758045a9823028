"""Work beside other work gives what it gives in turn."""

import pytest
import torch
from torch import Tensor

from glimt.parallel.beside import Beside

SIZE = 512
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def layer(x: Tensor, weight: Tensor, beside: Beside) -> Tensor:
    """Two branches of x, whose temporaries take each other's memory if they may."""
    joined = beside.begin(lambda: torch.relu(x @ weight) @ weight)
    other = x.clone()
    for _ in range(3):
        other = torch.tanh(other @ weight) + x
    return other + joined()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, ON_GPU])])
def test_results_are_those_of_one_after_the_other(device: str) -> None:
    on = torch.device(device)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(2, SIZE, SIZE, generator=generator).to(on)
    x, weight = drawn[0], drawn[1] / SIZE**0.5
    found, plain = x, x
    for _ in range(8):
        found = layer(found, weight, Beside(on)) / 4
        branch = torch.relu(plain @ weight) @ weight
        other = plain
        for _ in range(3):
            other = torch.tanh(other @ weight) + plain
        plain = (other + branch) / 4
    assert torch.equal(found, plain)


@pytest.mark.gpu
@ON_GPU
def test_a_graph_repeats_it_while_inputs_change() -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    x, weight = torch.randn(2, SIZE, SIZE, generator=generator, device="cuda") / SIZE**0.5
    beside, in_turn = Beside(x.device), Beside(torch.device("cpu"))

    def layers(way: Beside) -> Tensor:
        y = x
        for _ in range(12):
            y = layer(y, weight, way) / 4
        return y

    layers(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = layers(beside)
    for _ in range(50):
        x.copy_(torch.randn(SIZE, SIZE, generator=generator, device="cuda"))
        graph.replay()
        assert torch.equal(found, layers(in_turn))
