"""Two GPUs, NCCL, sums in CUDA graphs: the tokens are those of one GPU.

Everything but the GPUs is tested on CPUs too: `GLIMT_TEST_DEVICE=cpu pytest -m gpu2 …` runs this
file there.
"""

import os
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from glimt.checkpoint import read_checkpoint
from glimt.config import (
    CacheSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    Settings,
)
from glimt.grammar.source import regex_grammar
from glimt.offline.engine_thread import EngineThread
from glimt.processes.build import build_engine
from glimt.processes.launch import make_plan
from glimt.tiny.checkpoint import make_tiny_checkpoint
from glimt.wire import Grammar, Outputs
from tests.support.tiny_model import Album, make_ask

DEVICE: Any = os.environ.get("GLIMT_TEST_DEVICE", "cuda")

pytestmark = [
    pytest.mark.gpu2,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two CUDA devices"
    ),
]

ALBUM = Album()
PAIR = ParallelSettings(tensor_parallel_size=2)
ASKS = [
    make_ask(ALBUM, "t", 1, max_tokens=32),
    make_ask(ALBUM, "ttttttttttttttttttttttttttt", 2, max_tokens=32),
    make_ask(ALBUM, "tititbt", 3, max_tokens=32),
    make_ask(ALBUM, "tvt", 4, max_tokens=32, logprobs=2),
    make_ask(ALBUM, "ttt", 5, max_tokens=32, temperature=1.0, top_p=0.9, top_k=50),
    make_ask(ALBUM, "tbt", 6, max_tokens=32, temperature=0.8, repetition_penalty=1.2),
    make_ask(
        ALBUM,
        "tt",
        7,
        max_tokens=12,
        temperature=1.0,
        eos_token_ids=(602,),
        grammar=Grammar(text=regex_grammar("[0-9]{3}-[a-f]{2}")),
    ),
]


class Answers:
    """Runs an engine and collects what it says, in the order of the requests."""

    def __init__(self, folder: Path, dtype: str, **groups: Any) -> None:
        settings = Settings(
            model=str(folder),
            models=ModelSettings(
                dtype=dtype, max_model_len="512", enforce_eager=groups.pop("eager", False)
            ),
            cache=CacheSettings(device=DEVICE, gpu_memory_utilization=0.5),
            **groups,
        )
        plan = make_plan(settings, read_checkpoint(folder))
        start = msgspec.structs.replace(plan.engine, arena_fds=(ALBUM.arena.fd,))
        engine = build_engine(start, [ALBUM.arena], lambda *phase: print(*phase))
        self._tokens: defaultdict[int, list[int]] = defaultdict(list)
        self._num_ended = 0
        self._change = threading.Condition()
        self._is_dead = False
        self._thread = EngineThread(engine, self._take, self._die)

    def of(self, *numbers: int) -> dict[int, list[int]]:
        """The answers to these of ASKS, which run side by side."""
        self._tokens.clear()
        self._num_ended = 0
        for number in numbers:
            self._thread.post(ASKS[number].submit(number))
        with self._change:
            ended = self._change.wait_for(
                lambda: self._is_dead or self._num_ended == len(numbers), timeout=200
            )
        assert ended
        assert not self._is_dead
        return dict(self._tokens)

    def stop(self) -> None:
        self._thread.stop()

    def _take(self, outputs: Outputs) -> None:
        with self._change:
            for output in outputs.outputs:
                assert output.error is None, output.error
                self._tokens[output.request_id] += output.token_ids
                self._num_ended += output.finish_reason is not None
            self._change.notify_all()

    def _die(self) -> None:
        with self._change:
            self._is_dead = True
            self._change.notify_all()


def all_answers(folder: Path, dtype: str = "float32", **groups: Any) -> list[dict[int, list[int]]]:
    """Alone, then all together, then again with caches warm."""
    answers = Answers(folder, dtype, **groups)
    try:
        everything = range(len(ASKS))
        return [answers.of(0), answers.of(6), answers.of(*everything), answers.of(*everything)]
    finally:
        answers.stop()


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> list[dict[int, list[int]]]:
    return all_answers(checkpoint)


@pytest.mark.parametrize(
    "groups",
    [
        {"parallel": PAIR, "eager": True},
        {"parallel": PAIR},
        {"parallel": ParallelSettings(tensor_parallel_size=2, disable_custom_all_reduce=True)},
        {
            "parallel": ParallelSettings(tensor_parallel_size=2, enable_expert_parallel=True),
            "media": MediaSettings(mm_encoder_tp_mode="data"),
        },
    ],
    ids=["without graphs", "with graphs", "sums by NCCL only", "whole experts, images dealt out"],
)
def test_two_gpus_give_the_tokens_of_one(
    groups: dict[str, Any], checkpoint: Path, alone: list[dict[int, list[int]]]
) -> None:
    assert all_answers(checkpoint, **groups) == alone


def test_fp8_weights_and_bfloat16_run_on_two_gpus(tmp_path: Path) -> None:
    """Sums fused with norms, and NCCL's, which round some last bits otherwise."""
    folder = make_tiny_checkpoint(tmp_path / "fp8", fp8=True)
    fused = all_answers(folder, "bfloat16", parallel=PAIR)
    by_nccl = all_answers(
        folder,
        "bfloat16",
        parallel=ParallelSettings(tensor_parallel_size=2, disable_custom_all_reduce=True),
    )
    assert all(all(answers.values()) for answers in (*fused, *by_nccl))
    pairs = [(fused[i][n], by_nccl[i][n]) for i in range(4) for n in fused[i]]
    assert sum(ours == theirs for ours, theirs in pairs) >= len(pairs) / 2
