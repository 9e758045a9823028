"""Two GPUs, NCCL, sums in CUDA graphs: the tokens are those of one GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from glimt import LLM, SamplingParams
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.parallel.test_ranks import picture

pytestmark = [
    pytest.mark.gpu2,
    pytest.mark.timeout(400),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

SPLITS: dict[str, dict[str, Any]] = {
    "every matrix split": {},
    "without graphs": {"enforce_eager": True},
    "sums by NCCL only": {"disable_custom_all_reduce": True},
    "whole experts, images dealt out": {
        "enable_expert_parallel": True,
        "mm_encoder_tp_mode": "data",
    },
}
COMMON: dict[str, Any] = {
    "device": "cuda",
    "dtype": "float32",
    "max_model_len": 512,
    "gpu_memory_utilization": 0.5,
}


def answers(llm: LLM) -> list[list[int]]:
    """Texts, images, a random draw, a grammar; alone and in company."""
    conversations = [
        [{"role": "user", "content": "Hi."}],
        [{"role": "user", "content": "Tell me something about this. " * 5}],
        [{"role": "user", "content": [picture(0), picture(1)]}],
        [{"role": "user", "content": [picture(2), {"type": "text", "text": "What?"}]}],
        [{"role": "user", "content": "Draw."}],
        [{"role": "user", "content": "A number."}],
    ]
    wishes: list[dict[str, Any]] = [{"temperature": 0.0}] * 4
    wishes += [{"temperature": 1.0, "top_p": 0.9}]
    wishes += [{"temperature": 1.0, "structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}]
    params = [SamplingParams(seed=i, max_tokens=32, **wish) for i, wish in enumerate(wishes)]
    found = llm.chat(conversations[0], params[0], use_tqdm=False)
    found += llm.chat(conversations, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in found]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("two") / "moe")


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> list[list[int]]:
    with LLM(checkpoint, **COMMON) as llm:
        return answers(llm)


@pytest.mark.parametrize("split", SPLITS)
def test_two_gpus_give_the_tokens_of_one(
    split: str, checkpoint: Path, alone: list[list[int]]
) -> None:
    with LLM(checkpoint, tensor_parallel_size=2, **COMMON, **SPLITS[split]) as llm:
        assert answers(llm) == alone


def test_fp8_weights_and_bfloat16_run_on_two_gpus(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "fp8", fp8=True)
    with LLM(folder, tensor_parallel_size=2, **{**COMMON, "dtype": "bfloat16"}) as llm:
        assert all(answers(llm))
