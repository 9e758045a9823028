"""Messages that carry rows to experts elsewhere: what comes out is what was put in, to the bit."""

import pytest
import torch
from torch import Tensor

from glimt.kernels import reference_messages, triton_messages
from glimt.kernels.reference import quantize_rows
from glimt.kernels.reference_messages import RowForm

WIDTH, PER_TOKEN = 96, 3


def rows_of(num_tokens: int, kind: str) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    x_TD = torch.randn(num_tokens, WIDTH, generator=generator)
    weights = torch.rand(num_tokens, PER_TOKEN, generator=generator)
    places = torch.randint(0, 200, (num_tokens, PER_TOKEN), generator=generator)
    if kind == "fp8":
        return *quantize_rows(x_TD), weights, places
    return x_TD.to(torch.bfloat16 if kind == "bfloat16" else torch.float32), None, weights, places


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("kind", ["fp8", "bfloat16", "float32"])
@pytest.mark.parametrize(("num_tokens", "num_rows"), [(0, 2), (1, 1), (5, 8), (0, 0)])
def test_rows_arrive_to_the_bit_and_rows_beyond_have_no_expert(
    kind: str, num_tokens: int, num_rows: int
) -> None:
    given = rows_of(num_tokens, kind)
    message = triton_messages.pack_rows(*given, num_rows)
    assert torch.equal(message, reference_messages.pack_rows(*given, num_rows))
    form = RowForm(WIDTH, given[0].dtype, PER_TOKEN)
    assert message.shape == (num_rows, form.num_bytes)
    assert form.num_bytes % 16 == 0
    ours = triton_messages.unpack_rows(message, form)
    theirs = reference_messages.unpack_rows(message, form)
    for one, other, put_in in zip(ours, theirs, given, strict=True):
        if put_in is None:
            assert one is other is None
            continue
        assert one is not None
        assert other is not None
        assert one.dtype == other.dtype == put_in.dtype
        assert torch.equal(bits(one), bits(other))
        assert torch.equal(bits(one[:num_tokens]), bits(put_in))
    assert (ours[3][num_tokens:] == -1).all()
    assert (ours[2][num_tokens:] == 0).all()


def test_fp8_halves_what_travels() -> None:
    fp8 = RowForm(4096, torch.float8_e4m3fn, 8).num_bytes
    assert fp8 <= 4096 + 80
    assert RowForm(4096, torch.bfloat16, 8).num_bytes == 8192 + 64
