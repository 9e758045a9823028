"""Two GPUs, NCCL, sums in CUDA graphs: the tokens are those of one GPU.

Each engine is a process of its own with a time to be done in, so one that hangs fails by itself and
says where. Everything but the GPUs is tested on CPUs too: `GLIMT_TEST_DEVICE=cpu pytest -m gpu2 …`
runs this file there. On GPUs that others use as well, ranks that wait for each other in kernels
take turns with them, and what takes seconds otherwise takes minutes.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.support.engine_answers import LIMIT_S, Rounds, answers_of

DEVICE: Any = os.environ.get("GLIMT_TEST_DEVICE", "cuda")

pytestmark = [
    pytest.mark.gpu2,
    pytest.mark.timeout(3 * LIMIT_S),
    pytest.mark.skipif(
        DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two CUDA devices"
    ),
]

PAIR = {"tensor_parallel_size": 2}
BY_NCCL = {**PAIR, "disable_custom_all_reduce": True}


@pytest.fixture(scope="module")
def alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    folder = tmp_path_factory.mktemp("alone") / "engine"
    return answers_of(checkpoint, folder, device=DEVICE, dtype="float32")


@pytest.mark.parametrize(
    "wishes",
    [
        {"parallel": PAIR},
        {"parallel": PAIR, "eager": True},
        {"parallel": BY_NCCL},
        {
            "parallel": {**PAIR, "enable_expert_parallel": True},
            "media": {"mm_encoder_tp_mode": "data"},
        },
    ],
    ids=["with graphs", "without graphs", "sums by NCCL only", "whole experts, images dealt out"],
)
def test_two_gpus_give_the_tokens_of_one(
    wishes: dict[str, Any], checkpoint: Path, alone: Rounds, tmp_path: Path
) -> None:
    found = answers_of(checkpoint, tmp_path / "pair", device=DEVICE, dtype="float32", **wishes)
    assert found == alone


def test_fp8_weights_and_bfloat16_run_on_two_gpus(tmp_path: Path) -> None:
    """Sums fused with norms, and NCCL's, which round some last bits otherwise."""
    folder = make_tiny_checkpoint(tmp_path / "fp8", fp8=True)
    fused, by_nccl = (
        answers_of(folder, tmp_path / name, device=DEVICE, dtype="bfloat16", parallel=parallel)
        for name, parallel in (("fused", PAIR), ("nccl", BY_NCCL))
    )
    assert all(all(answers.values()) for answers in (*fused, *by_nccl))
    pairs = [(fused[i][n], by_nccl[i][n]) for i in range(4) for n in fused[i]]
    assert sum(ours == theirs for ours, theirs in pairs) >= len(pairs) / 2
