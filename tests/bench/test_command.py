"""The command line: vLLM's command lines are understood, mistakes are named, starts are light."""

import asyncio
import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cyclopts import UnknownOptionError

from glimt.bench import cli, settings
from glimt.bench.figures.question import METRICS
from glimt.bench.options import (
    DataOptions,
    FigureOptions,
    LoadOptions,
    Options,
    OutputOptions,
    SamplingOptions,
    TargetOptions,
)
from glimt.bench.provenance import without_secrets
from glimt.bench.run import plain
from glimt.bench.target import find_target
from glimt.bench.words import settled
from glimt.errors import BadSettings
from tests.support.mock_server import MockServer

MISSION = (
    "serve --backend openai-chat --endpoint /v1/chat/completions --model zai-org/GLM-4.5V-FP8 "
    "--dataset-name hf --dataset-path lmarena-ai/VisionArena-Chat --num-prompts 1000"
)


def parsed(line: str) -> dict[str, Any]:
    _, bound, _ = cli.app.parse_args(line, exit_on_error=False, print_error=False)
    return dict(bound.arguments)


@pytest.mark.parametrize("pace", ["--request-rate 20", "--max-concurrency 1"])
def test_the_published_commands_parse_unchanged(pace: str) -> None:
    groups = parsed(f"{MISSION} {pace}")
    assert groups["target"].endpoint == "/v1/chat/completions"
    assert groups["data"].dataset_path == "lmarena-ai/VisionArena-Chat"
    assert groups["load"].num_prompts == 1000
    options = Options(target=groups["target"], load=groups["load"], data=groups["data"])
    settings.check(options)


def test_options_with_several_values_are_read_as_vllm_reads_them() -> None:
    line = "--goodput ttft:200 tpot:15 --metadata a=b c=d --header X=y --save-result --seed 3"
    groups = parsed(f"serve {line} --lora-modules m n --burstiness inf --no-oversample")
    assert groups["figures"].goodput == ["ttft:200", "tpot:15"]
    assert groups["output"].metadata == ["a=b", "c=d"]
    assert groups["output"].save_result
    assert groups["sampling"].lora_modules == ["m", "n"]
    assert groups["load"].burstiness == float("inf")
    assert groups["data"].no_oversample


def test_options_have_the_names_by_which_other_clients_know_them() -> None:
    groups = parsed("serve --warmup-requests 3 --multi-turn 2 --input-tokens text")
    assert groups["load"].num_warmups == 3
    assert groups["data"].turns == 2
    options = Options(figures=groups["figures"])
    assert settings.question(options).counts_texts


def test_the_documents_name_every_block_of_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text()
    row = next(line for line in text.splitlines() if "`--percentile-metrics`" in line)
    assert all(name in row for name in METRICS)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--num-promts", "--num-prompts"),
        ("--prompts", "--num-prompts"),
        ("--xyzzy", "The nearest is --"),
        ("--spec-bench-output-len", "--dataset-name custom"),
        ("--sonnet-input-len=3", "prefix_repetition"),
        ("--asr-max-audio-len-sec", "Audio is not measured here"),
        ("--endpoint-type", "The nearest is --backend"),
        ("--conf", "The nearest is --config"),
        ("--api-key", "OPENAI_API_KEY"),
        ("--dataset-name=spec_bench", "--dataset-name custom"),
        ("--backend=openai-embeddings", "Embeddings and reranking are not measured here"),
        ("stray", "Not understood: stray 3"),
    ],
)
def test_an_unknown_option_names_the_nearest_one_or_what_to_use_instead(
    option: str, words: str
) -> None:
    command = [sys.executable, "-m", "glimt", "bench", "serve", option, "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_commands_of_vllms_bench_are_told_their_names_here() -> None:
    command = [sys.executable, "-m", "glimt", "bench", "sweep", "serve"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "glimt bench serve --sweep" in " ".join(done.stderr.replace("│", " ").split())


def test_options_of_one_dataset_are_not_ignored_by_another() -> None:
    theirs = DataOptions(hf_output_len=3, random_input_len=7, output_len=5)
    notes = settings.check(Options(data=theirs))
    assert [note for note in notes if "no effect" in note] == [
        "--hf-output-len has no effect on random: it is for hf"
    ]
    ours = DataOptions(image_dup_ratio=0.3, image_format="png", think_time=1.0)
    with pytest.raises(BadSettings) as raised:
        settings.check(Options(data=ours))
    for words in (
        "--image-dup-ratio is for --dataset-name visionarena-like or",
        "it needs --turns",
    ):
        assert words in str(raised.value)
    shown = replace(ours, dataset_name="visionarena-like", turns=2)
    target = TargetOptions(backend="openai-chat", endpoint="/v1/chat/completions")
    assert not any("effect" in note for note in settings.check(Options(data=shown, target=target)))


def test_the_last_of_an_option_counts_and_members_of_json_can_be_given_one_by_one() -> None:
    notes: list[str] = []
    line = '--num_prompts 9 --goodput ttft:1 tpot:2 --extra-body={"a":{"b":1,"c":2}} --seed=4'
    line += " --extra-body.a.b 7 --extra-body.l+ x,3 --extra-body.d=true --num-prompts 10"
    line += " --goodput e2el:5 --chat-template-kwargs.enable_thinking false"
    groups = parsed(" ".join(["serve", *map(shlex.quote, settled(line.split(), notes.append))]))
    assert groups["load"].num_prompts == 10
    assert groups["load"].seed == 4
    assert groups["figures"].goodput == ["e2el:5"]
    body = {"a": {"b": 7, "c": 2}, "l": ["x", 3], "d": True}
    assert json.loads(groups["sampling"].extra_body) == body
    assert json.loads(groups["sampling"].chat_template_kwargs) == {"enable_thinking": False}
    assert [note.split()[1] for note in notes] == ["--num-prompts", "--goodput"]


def test_a_file_can_hold_the_options(tmp_path: Path) -> None:
    file = tmp_path / "bench.toml"
    file.write_text("[bench.serve]\nnum-prompts = 0\nseed = -1\n")
    command = [sys.executable, "-m", "glimt", "bench", "serve", "--config", str(file)]
    done = subprocess.run([*command, "--seed", "-2"], capture_output=True, text=True)
    assert "--num-prompts 0" in done.stderr
    assert "--seed -2" in done.stderr


def test_the_client_imports_neither_torch_nor_the_server() -> None:
    program = (
        "import sys, glimt.bench.cli; "
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('torch', 'transformers', 'starlette', 'uvicorn', 'zmq', 'httpx') or name.startswith("
        "('glimt.api', 'glimt.frontend', 'glimt.engine', 'glimt.models', 'glimt.processes'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_server_is_asked_before_anything_is_loaded_that_is_needed_later() -> None:
    program = (
        "import sys; from glimt.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except Exception as error: assert 'there is no server' in str(error), error\n"
        "print([name for name in ('PIL', 'tokenizers', 'pyarrow', 'glimt.bench.outputs', "
        "'glimt.bench.compare', 'glimt.bench.ceiling', 'glimt.bench.report.html', "
        "'glimt.bench.figures.summary') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, *MISSION.replace("serve", "bench serve", 1).split()]
    done = subprocess.run([*command, "--port", "1"], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(load=LoadOptions(request_rate=0)), "--request-rate 0"),
        (Options(load=LoadOptions(burstiness=-1)), "--burstiness -1"),
        (Options(load=LoadOptions(num_prompts=0)), "--num-prompts 0"),
        (Options(load=LoadOptions(max_concurrency=0)), "--max-concurrency 0"),
        (Options(load=LoadOptions(ramp_up_strategy="linear")), "needs --ramp-up-start-rps"),
        (Options(load=LoadOptions(ramp_up_start_rps=1)), "need --ramp-up-strategy"),
        (
            Options(
                load=LoadOptions(
                    ramp_up_strategy="linear",
                    ramp_up_start_rps=1,
                    ramp_up_end_rps=2,
                    request_rate=3,
                )
            ),
            "does not go with --ramp-up-strategy",
        ),
        (Options(load=LoadOptions(duration=5)), "--duration needs"),
        (Options(load=LoadOptions(self_timed=True)), "timed_trace"),
        (Options(data=DataOptions(turns=2)), "--turns"),
        (Options(data=DataOptions(image_dup_ratio=1)), "--image-dup-ratio"),
        (Options(sampling=SamplingOptions(use_beam_search=True)), "--use-beam-search"),
        (Options(sampling=SamplingOptions(extra_body="[1]")), "--extra-body"),
        (Options(sampling=SamplingOptions(extra_body="{")), "--extra-body"),
        (Options(figures=FigureOptions(goodput=["x:1"])), "--goodput x:1"),
        (Options(figures=FigureOptions(slo_preset="x")), "--slo-preset x"),
        (Options(figures=FigureOptions(metric_percentiles="101")), "--metric-percentiles 101"),
        (Options(figures=FigureOptions(percentile_metrics="speed")), "speed is not one of"),
        (Options(figures=FigureOptions(steady_window="2")), "--steady-window 2"),
        (Options(output=OutputOptions(metadata=["a"])), "--metadata a"),
        (Options(target=TargetOptions(tokenizer_mode="mistral")), "--tokenizer-mode mistral"),
        (Options(target=TargetOptions(port=0)), "--port 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_done(
    options: Options, words: str
) -> None:
    with pytest.raises(BadSettings) as caught:
        settings.check(options)
    assert words in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    options = Options(load=LoadOptions(num_prompts=0, burstiness=0), data=DataOptions(turns=3))
    with pytest.raises(BadSettings) as caught:
        settings.check(options)
    for words in ("--num-prompts", "--burstiness", "--turns"):
        assert words in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "x:port", "http://h:99999"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    command = [sys.executable, "-m", "glimt", "bench", "serve", "--base-url", url, "--model", "m"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--base-url" in done.stderr


def test_an_endpoint_that_does_not_fit_the_backend_is_refused() -> None:
    command = [sys.executable, "-m", "glimt", "bench", "serve", "--backend", "openai-chat"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "/v1/chat/completions" in done.stderr


class Locked(BaseHTTPRequestHandler):
    """A server that wants a key for everything."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("key", "words"), [(None, "it wants a key"), ("k", "it wants another key")]
)
def test_a_server_that_wants_a_key_is_no_server_without_models(key: str | None, words: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = TargetOptions(base_url=f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(BadSettings, match=f"401 to /v1/models: {words}; set OPENAI_API_KEY"):
            asyncio.run(find_target(options, key))
        named = asyncio.run(find_target(replace(options, model="m"), key))
        server.shutdown()
    assert named.model == "m"  # whether the key is good for completions, completions will tell


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (TargetOptions(backend="openai-chat"), "such as /v1/chat/completions"),
        (TargetOptions(endpoint="/v1/chat/completions"), "the chat API's: --backend openai-chat"),
        (TargetOptions(base_url="http://h/v1/"), "leave it out of the base URL"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(options: TargetOptions, words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        asyncio.run(find_target(options, None))


def test_keys_in_headers_stay_out_of_what_is_written() -> None:
    given = ["serve", "--header", "Authorization=Bearer hush", "X-Key=hush=", "--seed", "3"]
    assert without_secrets(given) == [
        *("serve", "--header", "Authorization=***", "X-Key=***", "--seed", "3")
    ]
    assert without_secrets(["--header=X-Key=hush", "a=b"]) == ["--header=X-Key=***", "a=***"]
    options = Options(target=TargetOptions(header=["X-Key=hush"]))
    assert plain(options) == {"header": ["X-Key=***"]}


@pytest.mark.parametrize(
    "several",
    [
        [],
        ["--sweep", "rate=20,30"],
        ["--find-max-rate", "--slo-preset", "chat", "--search-low", "20"],
    ],
    ids=lambda several: several[0] if several else "one",
)
def test_ctrl_c_ends_a_command_and_shows_what_there_is(several: list[str]) -> None:
    server = MockServer("--ttft-ms", "5", "--gap-ms", "1")
    try:
        command = [sys.executable, "-m", "glimt", "bench", "serve", "--backend", "openai-chat"]
        command += ["--endpoint", "/v1/chat/completions", "--base-url", server.url]
        command += ["--skip-tokenizer-init", "--random-input-len", "5", "--random-output-len", "3"]
        command += ["--request-rate", "20", "--num-prompts", "1000", *several]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while len(server.requests()) < 5:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert out.count("Serving Benchmark Result") == 1
        assert "objectives:" not in out
        assert "interrupted" in err
    finally:
        server.stop()


@pytest.mark.parametrize("command", ["report x.jsonl", "compare a b"])
def test_what_only_a_run_can_do_is_no_option_of_an_evaluation(command: str) -> None:
    for flag in ("--gpu", "--server-metrics", "--profile"):
        parsed(f"serve {flag}")
        with pytest.raises(UnknownOptionError):
            parsed(f"{command} {flag}")


def test_help_has_a_heading_for_each_kind_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    cli.app.help_print(["serve"])
    told = capsys.readouterr().out
    assert "─ Which server is asked, and how ─" in told
    assert "─ What is written ─" in told
    assert "─ Parameters ─" not in told


def test_pictures_are_those_of_the_look_alike_whatever_else_is_asked_of_them() -> None:
    _, bound, _ = cli.app.parse_args("mm --image-format png", exit_on_error=False)
    assert bound.arguments["data"].dataset_name == "visionarena-like"
    assert bound.arguments["data"].image_format == "png"
