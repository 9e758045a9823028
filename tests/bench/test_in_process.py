"""The benchmarks without a client, on a tiny checkpoint; and the ceiling of the client."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glimt.bench.ceiling import CeilingOptions, ceiling
from glimt.bench.offline.engine import EngineOptions
from glimt.bench.offline.latency import LatencyOptions, latency
from glimt.bench.offline.mm import STAGES, MediaOptions, measure_media, media_table
from glimt.bench.offline.startup import StartupOptions, startup
from glimt.bench.offline.throughput import ThroughputOptions, throughput
from glimt.bench.options import DataOptions
from glimt.errors import BadSettings
from glimt.tiny.checkpoint import make_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "moe"))


def test_latency_times_each_iteration(model: str, tmp_path: Path) -> None:
    told: list[str] = []
    wishes = LatencyOptions(
        input_len=6,
        output_len=3,
        batch_size=2,
        num_iters_warmup=1,
        num_iters=2,
        output_json=str(tmp_path / "l.json"),
    )
    assert latency(model, wishes, EngineOptions(), told.append) == 0
    result = json.loads((tmp_path / "l.json").read_text())
    assert len(result["latencies"]) == 2
    assert result["avg_latency"] == pytest.approx(np.mean(result["latencies"]))
    assert told[0].startswith("Avg latency: ")
    assert len(told) == 7


def test_latency_of_a_few_layers_with_random_weights(model: str) -> None:
    told: list[str] = []
    wishes = LatencyOptions(
        input_len=4, output_len=2, batch_size=1, num_iters_warmup=0, num_iters=1
    )
    overrides = json.dumps({"text_config": {"num_hidden_layers": 2}})
    engine = EngineOptions(load_format="dummy", hf_overrides=overrides)
    assert latency(model, wishes, engine, told.append) == 0
    with pytest.raises(BadSettings, match="hf-overrides"):
        latency(model, wishes, EngineOptions(hf_overrides="{"), told.append)


def test_throughput_counts_text_images_and_answers(model: str, tmp_path: Path) -> None:
    told: list[str] = []
    wishes = ThroughputOptions(num_prompts=3, num_warmups=1, output_json=str(tmp_path / "t.json"))
    data = DataOptions(
        dataset_name="random-mm",
        random_mm_bucket_config="{(56, 84, 1): 1}",
        random_input_len=5,
        random_output_len=4,
    )
    assert throughput(model, wishes, data, EngineOptions(), told.append) == 0
    assert told[0].startswith("Throughput: ")
    assert told[2] == "Total num output tokens:  12"
    result = json.loads((tmp_path / "t.json").read_text())
    assert result["total_num_tokens"] > 12 + 3 * (5 + 6)  # six tokens an image
    assert result["num_requests"] == 3


def test_the_image_path_is_timed_by_stage(tmp_path: Path) -> None:
    told: list[str] = []
    data = DataOptions(
        dataset_name="random-mm", random_mm_bucket_config="{(60, 80, 1): 1}", hf_output_len=3
    )
    wishes = MediaOptions(
        num_prompts=2, metric_percentiles="50,90", output_json=str(tmp_path / "m.json")
    )
    assert measure_media(wishes, data, told.append) == 0
    assert told[0] == "note: --hf-output-len has no effect on random-mm: it is for hf"
    assert told[1].startswith("2 images of 0.00 megapixels")
    assert told[2].split() == ["stage", "mean", "median", "std", "P50", "P90", "per", "MP"]
    assert [line.split()[0] for line in told[3:]] == list(STAGES)
    result = json.loads((tmp_path / "m.json").read_text())
    assert all(len(result[f"{stage}_ms"]) == 2 for stage in STAGES)
    with pytest.raises(BadSettings, match="--image-format is for"):
        measure_media(wishes, replace(data, image_format="png"), told.append)
    with pytest.raises(BadSettings, match="no images"):
        measure_media(MediaOptions(num_prompts=1), DataOptions(), told.append)
    lines = list(media_table(np.array([[1.0] * 5, [3.0] * 5]), 2.0))
    assert lines[1].split() == ["base64", "2.00", "2.00", "1.00", "2.98", "2.00"]


@pytest.mark.slow
def test_starts_are_taken_apart_by_phase(model: str) -> None:
    told: list[str] = []
    assert startup(model, StartupOptions(num_iters=2), told.append) == 0
    phases = [line.rsplit(maxsplit=2)[0].strip() for line in told[1:]]
    assert "engine-0: weights" in phases
    assert phases[-2:] == ["ready, by the server", "ready, from outside"]
    with pytest.raises(BadSettings, match="ended before it was ready"):
        startup(model, StartupOptions(serve_args="--no-such-flag"), told.append)


@pytest.mark.slow
def test_the_ceiling_is_measured_against_a_server_that_costs_nothing() -> None:
    told: list[str] = []
    wishes = CeilingOptions(requests=200, streams=8, tokens=50, repeats=1)
    assert ceiling(wishes, told.append) == 0
    assert "requests/s of one token, 8 at a time" in told[0]
    assert "chunks/s over 8 streams" in told[2]
