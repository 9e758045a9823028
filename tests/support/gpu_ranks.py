"""One of two ranks that draw, encode and sum over GPUs, each in two ways, and write down what
differs after each piece, for `tests/parallel/test_ranks_on_gpus.py`:

    python -m tests.support.gpu_ranks FOLDER RANK
"""

import faulthandler
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glimt import kernels
from glimt.kernels import Delta, QuantizedRows
from glimt.kernels import draws as draw_kernels
from glimt.kernels.pending import ExpertRows, LinearParts
from glimt.models.glm4v import Glm4v
from glimt.parallel import one_kernel
from glimt.parallel.group import Groups, Meeting, join
from glimt.parallel.mesh import Mesh
from glimt.runner.sampler import draw, prepare_draws
from glimt.runner.sampling_rows import SamplingRows
from glimt.runner.split_draw import can_split, draw_over_ranks
from glimt.wire import SamplingParams
from tests.support.tiny_model import tiny_model

VOCAB = 151552
WISHES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"min_p": 0.02},
    {"top_k": 50},
    {"top_k": 900, "top_p": 0.9, "temperature": 0.7},
]
TOGETHER: list[dict[str, Any]] = [
    {"top_p": 0.9},
    {"top_p": 0.99, "min_p": 0.001, "temperature": 1.5},
    {"top_k": 5000, "top_p": 0.8},
]
WIDTH, EPS = 4096, 1e-5
REPLAYS = 1000
PIECE_LIMIT_S = 40
LONELY = 4


class Rank:
    """Draws inputs, sums, compares and counts."""

    def __init__(self, groups: Groups, rank: int, folder: Path) -> None:
        self.groups = groups
        self.folder = folder
        self.nccl = Mesh(2, rank, tp_group=groups.device)
        self.device = torch.device("cuda", rank)
        self.same = torch.Generator(self.device).manual_seed(7)  # on both ranks
        self.own = torch.Generator(self.device).manual_seed(rank)
        self.weight = self.draw(1, self.same)[0]
        self.found: dict[str, int] = {}

    def draw(self, num_rows: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num_rows, WIDTH, generator=generator, device=self.device).bfloat16()

    def fused(self, x: Tensor, part: Delta) -> tuple[QuantizedRows, Tensor]:
        assert self.groups.norm_sums is not None
        done = self.groups.norm_sums.add_rms_norm(x, part, self.weight, EPS, quantizes=True)
        assert done is not None
        rows, total = done
        assert isinstance(rows, QuantizedRows)
        return rows, total

    def compare(self, num_rows: int) -> None:
        """Both ways, of new numbers."""
        x, part = self.draw(num_rows, self.same), self.draw(num_rows, self.own)
        rows, total = self.fused(x, part)
        delta = self.nccl.tp_sum(part.clone())
        expected, expected_total = kernels.add_rms_norm_quantize(x, delta, self.weight, EPS)
        q, scale = kernels.quantize_rows(rows.x_TI)
        theirs = self.nccl.tp_concat(rows.x_TI).view(num_rows, 2, WIDTH)
        far = ~torch.isclose(rows.x_TI.float(), expected.x_TI.float(), rtol=0.01, atol=1e-6)
        self.count("numbers", x.numel())
        self.count("other_sums", int((total != expected_total).sum()))
        self.count("other_norms", int((rows.x_TI != expected.x_TI).sum()))
        self.count("far_norms", int(far.sum()))
        self.count("other_fp8", int((q.view(torch.uint8) != rows.q_TI.view(torch.uint8)).sum()))
        self.count("other_fp8", int((scale != rows.scale_T1).sum()))
        self.count("unlike_peer", int((theirs != rows.x_TI[:, None]).sum()))

    def replay(self, num_rows: int) -> None:
        """Two layers' worth of sums in a graph whose inputs change between replays."""
        x, part = self.draw(num_rows, self.same), self.draw(num_rows, self.own)

        def layers() -> tuple[QuantizedRows, Tensor]:
            rows, total = self.fused(x, part)
            return self.fused(total, rows.x_TI)

        layers()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            rows, total = layers()
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        for _ in range(REPLAYS):
            x.copy_(self.draw(num_rows, self.same))
            part.copy_(self.draw(num_rows, self.own))
            rows.x_TI.fill_(torch.nan)
            graph.replay()
            first, middle = kernels.add_rms_norm_quantize(
                x, self.nccl.tp_sum(part.clone()), self.weight, EPS
            )
            expected = middle + self.nccl.tp_sum(first.x_TI.clone())
            # A last bit of the first norm may be another, and so one of the sum.
            wrong += (~torch.isclose(total.float(), expected.float(), rtol=0.02, atol=0.02)).sum()
            wrong += rows.x_TI.isnan().sum()
        self.count("replays", REPLAYS)
        self.count("wrong_replays", int(wrong))

    def left_over(self, num_rows: int) -> list[Delta]:
        """This rank's parts as branches leave them: of a product, and of experts, all here and
        half of them elsewhere, whose rows nobody has set.
        """
        part = torch.stack([self.draw(num_rows, self.own).float() for _ in range(4)])
        scales = self.draw(num_rows, self.own).abs().float()
        parts: list[Delta] = [LinearParts(part, scales[:, :1].contiguous(), scales[0].contiguous())]
        experts = torch.rand(num_rows, 128, generator=self.same, device=self.device).topk(8).indices
        weights = torch.rand(num_rows, 8, generator=self.same, device=self.device)
        row = self.draw(9 * num_rows, self.own)
        parts.append(ExpertRows(row, weights, experts, 128, True))
        experts = experts - 64 * self.nccl.tp_rank
        row = row[: 8 * num_rows].clone()
        row[(experts < 0).flatten() | (experts >= 64).flatten()] = torch.nan
        return [*parts, ExpertRows(row, weights, experts, 64, False)]

    def compare_left_over(self, num_rows: int) -> None:
        """Parts that the sum carries out, and the same carried out before."""
        for part in self.left_over(num_rows):
            x = self.draw(num_rows, self.same)
            rows, total = self.fused(x, part)
            expected, expected_total = self.fused(x, kernels.settled(part))
            self.count("left_over", x.numel())
            for ours, theirs in zip(
                (total, rows.x_TI, rows.q_TI.view(torch.uint8), rows.scale_T1),
                (expected_total, expected.x_TI, expected.q_TI.view(torch.uint8), expected.scale_T1),
                strict=True,
            ):
                self.count("other_left_over", int((ours != theirs).sum()))

    def replay_left_over(self, num_rows: int) -> None:
        """A layer's two sums in a graph, again and again."""
        product, experts, _ = self.left_over(num_rows)
        x = self.draw(num_rows, self.same)

        def layer() -> tuple[Tensor, Tensor]:
            rows, total = self.fused(self.fused(x, product)[1], experts)
            return rows.x_TI, total

        normed, total = (tensor.clone() for tensor in layer())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            again, total_again = layer()
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        for _ in range(REPLAYS):
            again.fill_(torch.nan)
            graph.replay()
            wrong += (again != normed).sum() + (total_again != total).sum()
        self.count("replays", REPLAYS)
        self.count("wrong_replays", int(wrong))

    def compare_draws(self, num_rows: int, wishes: list[dict[str, Any]]) -> None:
        """Tokens from the shares of both ranks, and from all logits in one place."""
        rows = SamplingRows(num_rows, VOCAB)
        for row in range(num_rows):
            fields = wishes[row % len(wishes)]
            rows.take(row, 1, SamplingParams(max_tokens=9, seed=row, **fields))
        row_N = np.arange(num_rows)
        logits = torch.randn(num_rows, VOCAB, generator=self.same, device=self.device)
        logits_NV = (3 * logits).bfloat16()
        share_NU = logits_NV.chunk(2, dim=1)[self.nccl.tp_rank].contiguous()
        nothing = torch.zeros(1, 1, dtype=torch.int32, device=self.device)
        one = np.ones_like(row_N)
        for inputs in prepare_draws(rows, row_N, one, one, self.device):
            assert can_split(inputs, self.device)
            split = draw_over_ranks(share_NU, nothing, inputs, self.nccl)
            whole = draw(logits_NV, nothing, inputs)
            theirs = self.nccl.tp_stack(split.token_N)
            self.count("draws", inputs.count)
            self.count("other_tokens", int((split.token_N != whole.token_N).sum()))
            self.count("other_tokens", int((split.status_N != whole.status_N).sum()))
            self.count("other_tokens", int((theirs != split.token_N).sum()))

    def compare_towers(self, grids: list[tuple[int, int]]) -> None:
        """Embeddings of images that both ranks encode together, and each alone."""
        config = tiny_model("glm4v_moe").config
        with torch.device("meta"):
            model = Glm4v(config, self.nccl)
        weights = tiny_model("glm4v_moe").vision.state_dict()
        on_gpu = {name: weight.to(self.device) for name, weight in weights.items()}
        model.vision.load_state_dict(on_gpu, assign=True)
        sizes = [(height * width, 3, 1, 14, 14) for height, width in grids]
        images = [
            torch.randint(0, 256, size, generator=self.same, device=self.device).to(torch.uint8)
            for size in sizes
        ]
        together = model.encode_images(images, grids, spread=True)
        alone = model.encode_images(images, grids)
        for ours, theirs in zip(together, alone, strict=True):
            self.count("embeddings", len(ours))
            near = torch.isclose(ours, theirs, rtol=1e-4, atol=1e-4)
            self.count("far_embeddings", int((~near).sum()))

    def count(self, what: str, number: int) -> None:
        self.found[what] = self.found.get(what, 0) + number


def sums(ours: Rank) -> None:
    """Fused sums, if there are any."""
    norm_sums = ours.groups.norm_sums
    ours.found["fuses"] = int(norm_sums is not None)
    if norm_sums is None:
        return
    most: int = norm_sums.peers.max_rows
    for num_rows in (1, 2, 3, 17, most, 1, most - 1) * 3:
        ours.compare(num_rows)
        ours.compare_left_over(num_rows)
    x = ours.draw(most + 1, ours.same)
    taken = norm_sums.add_rms_norm(x, x, ours.weight, EPS, quantizes=True)
    ours.found["takes_too_many"] = int(taken is not None)


def replays(ours: Rank) -> None:
    """Of fused sums in graphs."""
    if ours.groups.norm_sums is not None:
        ours.replay(1)
        ours.replay(5)
        for num_rows in (1, 8, 64):
            ours.replay_left_over(num_rows)


def draws(ours: Rank) -> None:
    """Many rows of all wishes, few of each."""
    draw_kernels.SPLIT_FROM = 1
    for num_rows in (1, 5, 64, 200):
        ours.compare_draws(num_rows, WISHES)
    draw_kernels.CUT_TOGETHER_FROM = 1
    for wish in WISHES + TOGETHER:
        ours.compare_draws(8, [wish])
    ours.compare_draws(64, WISHES + TOGETHER)


@torch.inference_mode()
def towers(ours: Rank) -> None:
    """One image, a small one, several."""
    for grids in ([(64, 84)], [(2, 2)], [(8, 6), (30, 2), (16, 16)]):
        ours.compare_towers(grids)


def lonely(ours: Rank) -> None:
    """Rank 0 tries sums in one kernel, on several streams in turn, without rank 1; both go on with
    NCCL.
    """
    rank = ours.nccl.tp_rank
    one_kernel._TRIAL_LIMIT_S = 1.0
    if rank == 1:
        one_kernel._prove = lambda *given: []
    started_s = time.monotonic()
    device, host = ours.groups.device, ours.groups.host
    make_stream: Any = torch.cuda.Stream
    streams = [torch.cuda.current_stream(), *(make_stream() for _ in range(LONELY - 1))]
    for number, stream in enumerate(streams):
        name = f"lonely{number}"
        store = Meeting(ours.folder / name).store(2)
        with torch.cuda.stream(stream):
            made = one_kernel.make_one_kernel_sum(name, device, host, store, rank, 2, ours.device)
        ours.count("lonely_trials", 1)
        ours.count("lonely_sums", int(made is not None))
    ours.found["lonely_s"] = int(time.monotonic() - started_s)
    total = ours.nccl.tp_sum(torch.ones(8, device=ours.device))
    ours.found["sum_after_it"] = int(total.sum())


PIECES = (draws, towers, sums, replays, lonely)


def main() -> None:
    """Work through all pieces; each is bounded, and the last one said is the one that hangs."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    faulthandler.dump_traceback_later(PIECE_LIMIT_S, exit=True)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    groups = join(Meeting(folder / "meeting-point"), rank, 2, device, width=WIDTH)
    ours = Rank(groups, rank, folder)
    for piece in PIECES:
        print(f"rank {rank}: {piece.__name__}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(PIECE_LIMIT_S, exit=True)
        piece(ours)
        torch.cuda.synchronize()
        (folder / f"{rank}.json").write_text(json.dumps(ours.found))
    os._exit(0)  # groups of ranks take long to take apart


if __name__ == "__main__":
    main()
