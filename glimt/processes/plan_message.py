"""What the rank that decides tells its peers: step plans, and orders of the operator.

Arrays travel as raw bytes. Grammars and their masks stay where they are decided on: all ranks
draw, and then take rank 0's tokens.
"""

import msgspec
import numpy as np

from glimt.engine.plan import Lockstep, NewRow, RowWork, StepPlan
from glimt.wire import ImageSpan, SamplingParams


class RowMessage(msgspec.Struct, frozen=True, array_like=True):
    """`NewRow`: int32 tokens, and int32 positions [3, num_prompt_tokens] or None."""

    row: int
    token_ids: bytes
    num_prompt_tokens: int
    positions: bytes | None
    rope_delta: int
    images: tuple[ImageSpan, ...]
    sampling: SamplingParams
    page_ids: tuple[int, ...]


class PlanMessage(msgspec.Struct, frozen=True, array_like=True, tag="plan"):
    """`StepPlan`. `number` counts the messages to peers."""

    number: int
    step: int
    freed_rows: tuple[int, ...]
    new_rows: tuple[RowMessage, ...]
    drop_images: tuple[bytes, ...]
    encode: tuple[ImageSpan, ...]
    work: tuple[RowWork, ...]
    waits_for_masks: bool
    lockstep: Lockstep | None = None
    is_idle: bool = False
    pixels: tuple[bytes, ...] = ()  # of `encode`, for ranks that do not share memory with rank 0


class OrderMessage(msgspec.Struct, frozen=True, array_like=True, tag="order"):
    """Of `glimt.engine.orders.Machine`: sleep (to `level`), wake, start_profile, stop_profile."""

    number: int
    kind: str
    level: int = 0


ToPeer = PlanMessage | OrderMessage


def pack(number: int, plan: StepPlan) -> PlanMessage:
    """The plan as peers get it."""
    return PlanMessage(
        number,
        plan.step,
        plan.freed_rows,
        tuple(_pack_row(new) for new in plan.new_rows),
        plan.drop_images,
        plan.encode,
        plan.work,
        plan.waits_for_masks,
        plan.lockstep,
        plan.is_idle,
    )


def unpack(message: PlanMessage) -> StepPlan:
    """The plan that a peer launches."""
    return StepPlan(
        step=message.step,
        freed_rows=message.freed_rows,
        new_rows=tuple(_unpack_row(row) for row in message.new_rows),
        drop_images=message.drop_images,
        encode=message.encode,
        work=message.work,
        waits_for_masks=message.waits_for_masks,
        lockstep=message.lockstep,
        is_idle=message.is_idle,
    )


def _pack_row(new: NewRow) -> RowMessage:
    sampling = new.sampling
    if sampling.grammar is not None or sampling.thinking is not None:
        sampling = msgspec.structs.replace(sampling, grammar=None, thinking=None)
    return RowMessage(
        new.row,
        new.token_ids.astype("<i4", copy=False).tobytes(),
        new.num_prompt_tokens,
        None if new.positions is None else new.positions.astype("<i4", copy=False).tobytes(),
        new.rope_delta,
        new.images,
        sampling,
        new.page_ids,
    )


def _unpack_row(row: RowMessage) -> NewRow:
    positions = None
    if row.positions is not None:
        positions = np.frombuffer(row.positions, "<i4").reshape(3, -1)
    return NewRow(
        row=row.row,
        token_ids=np.frombuffer(row.token_ids, "<i4"),
        num_prompt_tokens=row.num_prompt_tokens,
        positions=positions,
        rope_delta=row.rope_delta,
        images=row.images,
        sampling=row.sampling,
        page_ids=row.page_ids,
    )
