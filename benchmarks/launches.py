"""What one layer of a decode step has a GPU do, counted without a GPU.

    python benchmarks/launches.py                       one GPU, -tp 2, -tp 2 -ep; 1, 8 and 64 rows
    python benchmarks/launches.py --rows 1 --names      and what it is

The layer runs on tensors that say they are on a GPU and have no memory. Its Triton kernels are
caught where they would be launched. Of torch's operations those count that read or write memory,
each as one launch: that holds for operations on elements, while a product or a sort may take
several. Rank 1 is counted, which has no expert of number 0. Times are a GPU's to tell
(`trace_step.py -tp 2`).
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

torch.version.cuda = torch.version.cuda or "none here"  # or the kernels would not be looked at

import triton  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from glimt.kernels import triton_peer_rows, triton_support  # noqa: E402
from glimt.layers.attention import LayerCache, Step  # noqa: E402
from glimt.models.config import TextConfig  # noqa: E402
from glimt.models.decoder import DecoderLayer, text_angles  # noqa: E402
from glimt.parallel.mesh import Mesh  # noqa: E402
from glimt.parallel.norm_sums import MAX_PUSHES, NormSums  # noqa: E402
from glimt.planning.published import published  # noqa: E402

MODEL = "GLM-4.5V"
LAYER = 3  # one with experts
PAGES, PAGE, CONTEXT = 64, 64, 2048
FP8 = frozenset(
    ("attention.qkv", "attention.o", "moe.experts", "moe.shared.gate_up", "moe.shared.down")
)
_FAKE = FakeTensorMode()  # one for all: what is remembered between calls is of this kind, too
# What changes no memory: new tensors and views.
_FREE = ("empty", "view", "new_empty", "as_strided", "slice", "select", "expand", "permute", "t.",
         "transpose", "unsqueeze", "squeeze", "detach", "alias", "split", "unbind", "lift_fresh",
         "_reshape_alias", "_unsafe_view", "device")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """So many ranks, which split each expert or have whole ones."""

    name: str
    num_ranks: int = 1
    has_whole_experts: bool = False

    def mesh(self, width: int) -> Mesh:
        """As its last rank has it, with memory that the ranks share."""
        if self.num_ranks == 1:
            return Mesh.single()
        size, rank = self.num_ranks, self.num_ranks - 1
        max_rows = MAX_PUSHES // (size - 1)
        addresses = torch.empty(size, dtype=torch.int64, device="cuda")
        counts = torch.empty(max_rows, dtype=torch.int32, device="cuda")
        peers = triton_peer_rows.PeerRows(addresses, counts, rank, max_rows, width)
        group: Any = object()  # nothing is sent
        return Mesh(
            tp_size=size,
            tp_rank=rank,
            ep_size=size if self.has_whole_experts else 1,
            ep_rank=rank if self.has_whole_experts else 0,
            tp_group=group,
            norm_sums=NormSums(peers, counts),
        )


LAYOUTS = (Layout("one GPU"), Layout("-tp 2", 2), Layout("-tp 2 -ep", 2, True))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operations."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if not name.startswith(_FREE):
            self._found[f"torch {name}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """What is launched within, by name."""
    found: Counter[str] = Counter()

    def run(kernel: Any, *given: Any, **named: Any) -> None:
        found[kernel.__name__] += 1

    with mock.patch.object(triton.JITFunction, "run", run), _Operations(found):
        yield found


def launches(layout: Layout, num_rows: int) -> Counter[str]:
    """Of one layer with experts, by name, in a step of so many requests."""
    config = published(MODEL)
    if config is None:
        raise SystemExit(f"nothing is known of {MODEL}")
    with (
        warnings.catch_warnings(),
        mock.patch.object(triton_support, "works_on", return_value=True),
        mock.patch.dict(triton_support._COMPILED, clear=True),
        _FAKE,
        torch.device("cuda"),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")  # of addresses asked of tensors that have none
        torch.set_default_dtype(torch.bfloat16)
        try:
            return _of_layer(config.text, layout, num_rows)
        finally:
            torch.set_default_dtype(torch.float32)


def _of_layer(config: TextConfig, layout: Layout, num_rows: int) -> Counter[str]:
    layer = DecoderLayer(config, LAYER, layout.mesh(config.hidden_size), FP8)
    heads = config.num_kv_heads // layout.num_ranks
    cache = LayerCache(torch.empty(PAGES, 2, heads, PAGE, config.head_dim), None)
    numbers = torch.empty(num_rows, dtype=torch.int64)
    step = Step(
        positions_3T=torch.empty(3, num_rows, dtype=torch.int64),
        slots_T=numbers,
        page_table_RM=torch.empty(num_rows, CONTEXT // PAGE, dtype=torch.int32),
        query_starts_R1=torch.empty(num_rows + 1, dtype=torch.int32),
        context_lens_R=torch.empty(num_rows, dtype=torch.int32),
        max_query_len=1,
        max_context_len=CONTEXT,
    )
    angles = text_angles(config.rope, step.positions_3T)
    x_TD = torch.empty(num_rows, config.hidden_size)
    with _counted():
        x_TD, delta_TD = layer(x_TD, torch.empty_like(x_TD), step, angles, cache)
    with _counted() as found:
        layer(x_TD, delta_TD, step, angles, cache)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--names", action="store_true", help="also what is launched")
    options = parser.parse_args()
    for layout in LAYOUTS:
        for num_rows in options.rows:
            found = launches(layout, num_rows)
            print(f"{layout.name:<10} {num_rows:4d} rows: {found.total():3d} launches of a layer")
            if options.names:
                print("".join(f"    {count} x {name}\n" for name, count in found.items()), end="")


if __name__ == "__main__":
    main()
