"""Two GPUs, each a replica with half of the experts: the answers are those of one GPU.

Everything but the GPUs is tested on CPUs too: `GLIMT_TEST_DEVICE=cpu pytest -m gpu2 …` runs this
file there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.e2e.test_replicas import QUESTIONS, text_of
from tests.e2e.test_shared_experts import all_texts, idle_steps
from tests.support.serving import Serving

DEVICE = os.environ.get("GLIMT_TEST_DEVICE", "cuda")

pytestmark = [
    pytest.mark.gpu2,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two CUDA devices"
    ),
]

# Few sizes of graphs to record, and room beside other programs.
FLAGS = ["--device", DEVICE, "--max-num-seqs", "8", "--max-model-len", "2K"]
FLAGS += ["--gpu-memory-utilization", "0.5"]
SHARED = ["-dp", "2", "-ep"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("shared") / "moe")


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    log = tmp_path_factory.mktemp("log") / "one.txt"
    with Serving(checkpoint, *FLAGS, "--dtype", "float32", log=log) as one:
        yield [text_of(one, question) for question in QUESTIONS]


@pytest.mark.parametrize(
    "flags",
    [
        ["--enforce-eager"],
        [],
        ["--all2all-backend", "alltoall"],
        ["--expert-placement-strategy", "round_robin"],
    ],
    ids=["without graphs", "with graphs", "rows dealt out", "experts in turn"],
)
def test_two_gpus_that_share_experts_give_the_answers_of_one(
    flags: list[str], checkpoint: Path, expected: list[str], tmp_path: Path
) -> None:
    command = [*FLAGS, *SHARED, "--dtype", "float32", *flags]
    with Serving(checkpoint, *command, log=tmp_path / "log.txt") as shared:
        assert all_texts(shared) == expected
        assert [text_of(shared, question) for question in QUESTIONS] == expected
        shared.wait_for(lambda: idle_steps(shared) > 0)


@pytest.mark.parametrize("backend", ["allgather_reducescatter", "alltoall"])
def test_fp8_rows_reach_fp8_experts_and_all_steps_are_graphs(backend: str, tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "fp8", fp8=True)
    command = [*FLAGS, *SHARED, "--dtype", "bfloat16", "--all2all-backend", backend]
    with Serving(folder, *command, log=tmp_path / "log.txt") as shared:
        assert all(all_texts(shared))
        shared.wait_for(lambda: idle_steps(shared) > 0)
        assert "no graph of" not in shared.log.read_text()
