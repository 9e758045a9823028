"""The benchmarks that need a GPU to say anything run on a CPU all the same, in small."""

import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glimt.checkpoint import read_checkpoint
from glimt.grammar.vocabulary import Vocabulary
from glimt.models.config_json import read_config

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_every_operation_is_compared_with_its_definition(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    command = ("-m", "benchmarks.kernels", "--device", "cpu", "--models", "tiny", "--rows", "3")
    told = run(*command, "--json", str(out))
    lines = json.loads(out.read_text())["lines"]
    assert all(line["is_right"] and line["us"] > 0 for line in lines)
    assert {"fp8_linear", "fp8_grouped_experts", "paged_attention"} <= {x["op"] for x in lines}
    assert f"{len(lines)} cases, 0 wrong or failed" in told


@pytest.mark.slow
def test_a_model_without_a_checkpoint_is_timed(tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    sizes = ("--model", "tiny", "--device", "cpu", "--quantization", "none")
    small = ("--max-model-len", "256", "--prompt", "20", "--tokens", "6", "--rounds", "1")
    batch = ("--requests", "1", "2", "--grid", "4", "6")
    run("benchmarks/dummy_model.py", *sizes, *small, *batch, "--json", str(out))
    result = json.loads(out.read_text())
    assert [step["rows"] for step in result["decode"]] == [1, 2]
    assert result["first_token"]["image_tokens"] == 6
    assert result["prefill_tokens_per_s"] > 0


@pytest.mark.slow
def test_groups_of_answers_are_timed_with_and_without_waiting(tmp_path: Path) -> None:
    out = tmp_path / "groups.json"
    sizes = ("--model", "tiny", "--device", "cpu", "--quantization", "none")
    small = ("--max-model-len", "512", "--grid", "8", "12", "--text", "60", "--rounds", "1")
    load = ("--groups", "1x4", "3x1", "--follow", "0", "32")
    run("benchmarks/groups.py", *sizes, *small, *load, "--json", str(out))
    tokens = [result["tokens"] for result in json.loads(out.read_text())]
    assert tokens[1] < tokens[0] / 2
    assert tokens[2] == tokens[3]


@pytest.mark.slow
def test_rows_are_exchanged_in_both_ways(tmp_path: Path) -> None:
    out = tmp_path / "exchange.json"
    small = ("--model", "tiny", "--device", "cpu", "--rows", "1", "6")
    told = run("benchmarks/expert_exchange.py", *small, "--json", str(out))
    found = json.loads(out.read_text())
    lines = found["rows"]
    assert [line["rows"] for line in lines] == [1, 6]
    assert all(line["gather_us"] > 0 and line["deal_us"] > 0 for line in lines)
    assert (found["gpus"], found["is_complete"]) == (2, True)
    assert "DEALS_FROM, for 2 replicas" in told


@pytest.mark.slow
def test_ranks_sum_and_draw_and_stop_together_when_their_time_is_up(tmp_path: Path) -> None:
    out = tmp_path / "sums.json"
    command = ("benchmarks/all_reduce.py", "--device", "cpu", "--json", str(out), "--rows")
    run(*command, "1", "8")
    found = json.loads(out.read_text())
    assert [row["rows"] for row in found["rows"]] == [1, 8]
    assert all(row["nccl_norm"] > 0 and row["fused"] is None for row in found["rows"])
    told = run(*command, "1", "8", "--seconds", "0")
    assert "the time was up before the end" in told
    assert json.loads(out.read_text())["rows"] == []
    command = ("benchmarks/draws_over_gpus.py", "--device", "cpu", "--json", str(out))
    run(*command, "--rows", "1", "--rounds", "1")
    draws = json.loads(out.read_text())["rows"]
    assert len(draws) == 8
    assert all(draw["differ"] == 0 for draw in draws)


def test_a_trace_is_summed_up_by_what_the_gpu_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    trace_step, dummy_model = map(importlib.import_module, ("trace_step", "dummy_model"))
    runs = [("gemm", 0, 10), ("norm", 12, 2), ("gemm", 14, 10), ("copy", 54, 6)]
    events = [{"cat": "kernel", "name": n, "ts": ts, "dur": d} for n, ts, d in runs]
    events.append({"cat": "cpu_op", "name": "host", "ts": 0, "dur": 1000})
    turn = dummy_model.Turn(None, 0.25, 0.5, 1.0, 0.25)
    told = "\n".join(trace_step.summarise({"traceEvents": events}, [turn, turn], layers=2))
    assert "2 launches a step, 1.0 a layer; 0.030 ms a step" in told
    assert "busy 46.7 %" in told  # 28 of 60
    assert "launch 0.50" in told
    assert "30.0 us before copy" in told


def test_a_checkpoint_without_weights_has_the_sizes_of_the_published_one(tmp_path: Path) -> None:
    folder = run("benchmarks/make_dummy_checkpoint.py", str(tmp_path / "sizes")).strip()
    checkpoint = read_checkpoint(Path(folder))
    config = read_config(checkpoint.config, checkpoint.preprocessor_config)
    assert (config.text.num_layers, config.text.vocab_size) == (46, 151552)
    words = Vocabulary.read(checkpoint.tokenizer_path, config.text.vocab_size)
    assert words is not None
    assert not list(Path(folder).glob("*.safetensors"))


@pytest.mark.slow
def test_ranks_take_the_switches_of_the_process_that_starts_them(tmp_path: Path) -> None:
    told = "from glimt.kernels import draws; print(draws.FEW_BY_KERNEL)"
    code = f"""
import subprocess, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from switches import hand_on
hand_on({{"few_by_kernel": 1}}, Path({str(tmp_path)!r}))
for more in ((), ("glimt.processes.peer",)):
    subprocess.run([sys.executable, "-c", {told!r}, *more])
"""
    assert run("-c", code).split() == ["False", "1"]


@pytest.mark.slow
def test_a_piece_that_does_not_end_after_its_last_words_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_gpus = importlib.import_module("benchmarks.two_gpus")
    monkeypatch.setattr(two_gpus, "END_S", 0.3)
    slow = "import time; print('all found', flush=True); time.sleep(60)"
    piece = two_gpus.Piece("slow", ("-c", slow), 30, last_words="all found", result="")
    started_s = time.monotonic()
    wrong = two_gpus.run(piece, 30, tmp_path, on_cpu=True)
    assert "figures are whole" in wrong
    assert time.monotonic() - started_s < 20


@pytest.mark.slow
def test_launches_of_a_layer_are_counted_without_a_gpu() -> None:
    told = run("benchmarks/launches.py", "--rows", "1", "--names")
    alone, split, whole = (int(count) for count in re.findall(r"(\d+) launches of a layer", told))
    assert alone <= 8
    assert "1 x norm_route_kernel" in told
    assert "1 x gate_up_kernel" in told
    # Over GPUs each sum is part of a norm, and whole experts take the kernels that split ones do.
    assert split <= 11
    assert whole <= split
