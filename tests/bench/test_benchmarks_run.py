"""The benchmarks that need a GPU to say anything run on a CPU all the same, in small."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_operation_is_compared_with_its_definition(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    command = ("-m", "benchmarks.kernels", "--device", "cpu", "--models", "tiny", "--rows", "3")
    told = run(*command, "--json", str(out))
    lines = json.loads(out.read_text())["lines"]
    assert all(line["is_right"] and line["us"] > 0 for line in lines)
    assert {"fp8_linear", "fp8_grouped_experts", "paged_attention"} <= {x["op"] for x in lines}
    assert f"{len(lines)} cases, 0 wrong or failed" in told


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
