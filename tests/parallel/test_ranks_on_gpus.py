"""Two GPUs: fused sums against NCCL's, draws from shares of the logits, images encoded together."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu2,
    pytest.mark.timeout(300),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


class Found(dict[str, int]):
    """What a rank found, as far as it came; of what is missing, how it ended."""

    def __init__(self, folder: Path, rank: int, status: int) -> None:
        file = folder / f"{rank}.json"
        super().__init__(json.loads(file.read_text()) if file.exists() else {})
        said = (folder / f"{rank}.txt").read_text(errors="replace")
        self._end = f"rank {rank} ended with status {status}:\n{said[-4000:]}"

    def __missing__(self, what: str) -> int:
        pytest.fail(f"there is no {what}: {self._end}")


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Of each of two ranks; see `tests/support/gpu_ranks.py`."""
    folder = tmp_path_factory.mktemp("sums")
    command = [sys.executable, "-m", "tests.support.gpu_ranks", str(folder)]
    with ExitStack() as stack:
        logs = [stack.enter_context((folder / f"{rank}.txt").open("w")) for rank in (0, 1)]
        ranks = [
            subprocess.Popen([*command, str(rank)], stdout=log, stderr=log)
            for rank, log in enumerate(logs)
        ]
        for rank in ranks:
            stack.callback(rank.kill)
        statuses = [rank.wait(timeout=200) for rank in ranks]
    return [Found(folder, rank, status) for rank, status in enumerate(statuses)]


def test_the_trial_at_the_start_lets_both_ranks_fuse(findings: list[Found]) -> None:
    assert [found["fuses"] for found in findings] == [1, 1]


def test_the_residual_stream_is_that_of_nccl_to_the_bit(findings: list[Found]) -> None:
    for found in findings:
        assert found["numbers"] > 1_000_000
        assert found["other_sums"] == 0


def test_norms_differ_in_few_last_bits_only(findings: list[Found]) -> None:
    for found in findings:
        assert found["far_norms"] == 0
        assert found["other_norms"] <= found["numbers"] / 1000


def test_both_ranks_have_the_same_bits(findings: list[Found]) -> None:
    assert [found["unlike_peer"] for found in findings] == [0, 0]


def test_rows_are_quantised_as_the_unfused_norm_does(findings: list[Found]) -> None:
    assert [found["other_fp8"] for found in findings] == [0, 0]


def test_sums_that_branches_leave_over_are_carried_out_to_the_same_bits(
    findings: list[Found],
) -> None:
    for found in findings:
        assert found["left_over"] > 1_000_000
        assert found["other_left_over"] == 0


def test_graphs_repeat_it_while_inputs_change(findings: list[Found]) -> None:
    for found in findings:
        assert found["replays"] >= 1000
        assert found["wrong_replays"] == 0


def test_rows_beyond_the_limit_are_left_to_nccl(findings: list[Found]) -> None:
    assert [found["takes_too_many"] for found in findings] == [0, 0]


def test_draws_from_shares_are_those_from_all_logits(findings: list[Found]) -> None:
    for found in findings:
        assert found["draws"] > 300
        assert found["other_tokens"] == 0


def test_images_encoded_together_are_those_encoded_alone(findings: list[Found]) -> None:
    for found in findings:
        assert found["embeddings"] > 1400
        assert found["far_embeddings"] == 0


def test_a_trial_that_another_rank_is_missing_in_ends_and_nccl_sums(
    findings: list[Found],
) -> None:
    for found in findings:
        assert found["lonely_trials"] == 4
        assert found["lonely_sums"] == 0
        assert found["lonely_s"] < 20
        assert found["sum_after_it"] == 16
