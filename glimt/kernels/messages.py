"""Messages of rows: by their definition, or by its twin where Triton works."""

from torch import Tensor

from glimt.kernels import reference_messages
from glimt.kernels.reference_messages import ALIGNMENT, RowForm
from glimt.kernels.twins import runs_on, triton_messages, triton_support


def pack_rows(
    values_TD: Tensor,
    scale_T1: Tensor | None,
    weights_TK: Tensor,
    places_TK: Tensor,
    num_rows: int,
) -> Tensor:
    """See `reference_messages.pack_rows`."""
    given = (values_TD, scale_T1, weights_TK, places_TK)
    if _has_twin(values_TD.shape[1] * values_TD.dtype.itemsize, *given):
        message_NB: Tensor = triton_messages.pack_rows(*given, num_rows)
        return message_NB
    return reference_messages.pack_rows(*given, num_rows)


def unpack_rows(message_NB: Tensor, form: RowForm) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """See `reference_messages.unpack_rows`."""
    if _has_twin(form.value_bytes, message_NB):
        values, scale, weights, places = triton_messages.unpack_rows(message_NB, form)
        return values, scale, weights, places
    return reference_messages.unpack_rows(message_NB, form)


def _has_twin(value_bytes: int, first: Tensor, *others: Tensor | None) -> bool:
    if triton_messages is None or not runs_on(first.device):
        return False
    small = value_bytes <= 4 * triton_messages.MAX_WORDS
    return value_bytes % ALIGNMENT == 0 and small and triton_support.fits(first, *others)
