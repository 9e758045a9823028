"""Several ranks as real processes: the answers are those of one process, whatever is split."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pybase64
import pytest
from PIL import Image

from glimt import LLM, SamplingParams
from glimt.errors import BadSettings, EngineDied
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.support.processes import processes_running

SPLITS: dict[str, tuple[str, dict[str, Any]]] = {
    "moe, every matrix split": ("moe", {}),
    "moe, whole experts, images dealt out": (
        "moe",
        {"enable_expert_parallel": True, "mm_encoder_tp_mode": "data"},
    ),
    "dense, one key-value head for both ranks": ("dense", {}),
}
# Small enough that prompts are cut into chunks and that not all requests fit at once.
TIGHT: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 6,
    "block_size": 16,
}
PAGES = 17  # 272 tokens for requests of about 100: several are preempted


def picture(seed: int) -> dict[str, Any]:
    """A content part with an image of some tokens."""
    pixels = np.random.default_rng(seed).integers(0, 256, (112, 112 + 28 * seed, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    url = "data:image/png;base64," + pybase64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def conversations() -> list[list[dict[str, Any]]]:
    """Long and short ones, shared beginnings, several images, the same image twice."""
    common = "Look at this and tell me what it says. " * 6
    return [
        [{"role": "user", "content": "Hi."}],
        [{"role": "user", "content": common + "One."}],
        [{"role": "user", "content": common + "Two."}],
        [{"role": "user", "content": [picture(0), {"type": "text", "text": "What?"}]}],
        [{"role": "user", "content": [picture(1), picture(2), picture(0)]}],
        [{"role": "user", "content": [picture(2), {"type": "text", "text": common}]}],
        [{"role": "user", "content": "Give me JSON."}],
        [{"role": "user", "content": "Give me a number."}],
    ]


def wishes() -> list[SamplingParams]:
    plain: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.0, "logprobs": 3},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 40},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 1.0, "structured_outputs": {"json": {"enum": ["a", 17, None]}}},
        {"temperature": 1.0, "structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}},
    ]
    return [SamplingParams(seed=seed, max_tokens=24, **params) for seed, params in enumerate(plain)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def checkpoints(folder: Path) -> dict[str, Path]:
    return {
        "moe": make_tiny_checkpoint(folder / "moe"),
        "dense": make_tiny_checkpoint(folder / "dense", variant="dense"),
        "fp8": make_tiny_checkpoint(folder / "fp8", fp8=True),
    }


def page_bytes(checkpoint: str, ranks: int) -> int:
    """Of one rank's page: 3 layers, keys and values, float32, 128 wide heads."""
    num_heads = max(1, {"moe": 2, "dense": 1}[checkpoint] // ranks)
    return 3 * 2 * num_heads * 128 * 4 * TIGHT["block_size"]


def answers(llm: LLM) -> list[tuple[list[int], str | None]]:
    """Twice, so that the second time finds prefixes and images in the caches."""
    found = []
    for _ in range(2):
        outputs = llm.chat(conversations(), wishes(), use_tqdm=False)
        found += [(list(o.outputs[0].token_ids), o.outputs[0].finish_reason) for o in outputs]
    return found


@pytest.fixture(scope="module")
def alone(checkpoints: dict[str, Path]) -> dict[str, list[tuple[list[int], str | None]]]:
    expected = {}
    for name in ("moe", "dense"):
        memory = PAGES * page_bytes(name, 1)
        with LLM(checkpoints[name], kv_cache_memory_bytes=memory, **TIGHT) as llm:
            expected[name] = answers(llm)
    return expected


@pytest.mark.parametrize("split", SPLITS)
def test_two_ranks_give_the_tokens_of_one(
    split: str,
    checkpoints: dict[str, Path],
    alone: dict[str, list[tuple[list[int], str | None]]],
) -> None:
    name, settings = SPLITS[split]
    memory = PAGES * page_bytes(name, 2)
    with LLM(
        checkpoints[name],
        tensor_parallel_size=2,
        kv_cache_memory_bytes=memory,
        **TIGHT,
        **settings,
    ) as llm:
        assert llm.info.num_pages == PAGES
        assert llm.info.tensor_parallel_size == 2
        assert answers(llm) == alone[name]
        if name == "dense":  # any will do, and its start takes seconds
            check_that_a_lost_peer_ends_the_callers_wait(llm)


def check_that_a_lost_peer_ends_the_callers_wait(llm: LLM) -> None:
    [peer] = processes_running("processes.peer")
    peer.kill()
    with pytest.raises(EngineDied):
        llm.chat([{"role": "user", "content": "Hi."}], use_tqdm=False)


@pytest.mark.slow
def test_more_ranks_than_key_value_heads_hold_copies(
    checkpoints: dict[str, Path],
    alone: dict[str, list[tuple[list[int], str | None]]],
) -> None:
    """Four ranks, two key-value heads, a tower of two heads that cannot be split."""
    with LLM(
        checkpoints["moe"],
        tensor_parallel_size=4,
        enable_expert_parallel=True,
        kv_cache_memory_bytes=PAGES * page_bytes("moe", 4),
        **TIGHT,
    ) as llm:
        assert answers(llm) == alone["moe"]


@pytest.mark.slow
def test_fp8_weights_are_split_and_answer(checkpoints: dict[str, Path]) -> None:
    """Ranks round their own parts of the activations: other tokens follow, but the first ones
    are about as likely.
    """
    wish = SamplingParams(temperature=0.0, max_tokens=1, logprobs=1)
    prompts = [list(range(first, first + 20)) for first in (30, 80, 130, 180)]
    found = []
    for size in (1, 2):
        with LLM(
            checkpoints["fp8"], device="cpu", tensor_parallel_size=size, max_model_len=512
        ) as llm:
            assert llm.info.weights_format == "fp8"
            outputs = llm.generate(prompts, wish, use_tqdm=False)
            logprobs = [output.outputs[0].logprobs for output in outputs]
            found.append([max(x.logprob for x in each[0].values()) for each in logprobs if each])
    assert found[0] == pytest.approx(found[1], abs=0.6)


def test_sizes_that_cannot_be_split_are_refused_by_name(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(BadSettings, match=r"\(640\) cannot be divided among 3 GPUs"):
        LLM(checkpoints["moe"], device="cpu", tensor_parallel_size=3)
