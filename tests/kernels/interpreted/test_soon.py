"""Which parts of which weights the programs of a product have fetched ahead."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from glimt.kernels.triton_soon import _PIECE, piece_of, shares

PIECE = _PIECE.value


@triton.jit
def _note_kernel(
    tensor_ptr,
    place_ptr,
    count_0: tl.constexpr,
    step_0: tl.constexpr,
    count_1: tl.constexpr,
    step_1: tl.constexpr,
    count_2: tl.constexpr,
    step_2: tl.constexpr,
    share: tl.constexpr,
    block: tl.constexpr,
):
    own = tl.arange(0, block)
    number = tl.program_id(0) * share + own
    tensor, place = piece_of(number, count_0, step_0, count_1, step_1, count_2, step_2)
    at = tl.program_id(0) * block + own
    tl.store(tensor_ptr + at, tl.where(own < share, tensor, 3))
    tl.store(place_ptr + at, place)


def fetched(tensors: list[Tensor], num_programs: int, most_bytes: int) -> list[list[int]]:
    """The pieces of each tensor, by number."""
    soon = shares(tensors, num_programs, most_bytes)
    block = soon.constants[-2]
    tensor, place = (torch.zeros(num_programs * block, dtype=t) for t in (torch.int32, torch.int64))
    _note_kernel[(num_programs,)](tensor, place, *soon.constants[:-1])
    found: list[list[int]] = [[], [], []]
    for number, byte in zip(tensor.tolist(), place.tolist(), strict=True):
        if number < 3:
            assert byte % PIECE == 0
            found[number].append(byte // PIECE)
    return [found[number] for number in range(len(tensors))]


def weights(*num_pieces: int) -> list[Tensor]:
    return [torch.empty(count * PIECE // 2, dtype=torch.bfloat16) for count in num_pieces]


@pytest.mark.parametrize("num_programs", [1, 3, 7, 40])
def test_all_of_the_first_and_an_even_part_of_the_last(num_programs: int) -> None:
    router, gate_up, down = fetched(weights(3, 5, 10), num_programs, 11 * PIECE)
    assert router == [0, 1, 2]
    assert gate_up == [0, 1, 2, 3, 4]
    assert down == [0, 3, 6]


def test_what_is_larger_than_the_limit_is_fetched_here_and_there() -> None:
    assert fetched(weights(100), 4, 9 * PIECE) == [[0, 11, 22, 33, 44, 55, 66, 77, 88]]


def test_bytes_after_the_last_piece_are_left() -> None:
    tensor = torch.empty(2 * PIECE + 100, dtype=torch.uint8)
    assert fetched([tensor, *weights(1)], 2, 1 << 20) == [[0, 1], [0]]


def test_nothing_is_fetched_of_nothing() -> None:
    assert shares([], 5, 1 << 20).constants[-3] == 0
