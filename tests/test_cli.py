"""The command line: fast, complete, and honest about what it cannot do."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from glimt.cli import main, settings_of
from glimt.config import (
    CacheSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    ServerSettings,
    Settings,
    names_in,
    parse_count,
)
from glimt.config_check import check, refuse_elsewheres
from glimt.errors import BadSettings

MISSION = [
    "--tensor-parallel-size",
    "4",
    "--tool-call-parser",
    "glm45",
    "--reasoning-parser",
    "glm45",
    "--enable-auto-tool-choice",
    "--enable-expert-parallel",
    "--allowed-local-media-path",
    "/",
    "--mm-encoder-tp-mode",
    "data",
    "--mm-processor-cache-type",
    "shm",
]
TWO_NODES = ParallelSettings(
    tensor_parallel_size=2, nnodes=2, master_addr="10.0.0.1", master_token="sixteen letters!"
)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_help_imports_neither_torch_nor_the_server() -> None:
    code = (
        "import sys; from glimt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'starlette', 'zmq', 'numpy', 'jinja2', 'aiohttp', 'PIL')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["glimt.config", "glimt.hub"])
def test_an_early_ctrl_c_leaves_no_traceback(module: str) -> None:
    """It comes while that module is found: of the command line, or of the command."""
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from glimt.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "serve", "/no/such/folder"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


def test_every_flag_has_a_sentence_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--help") == 0
    text = capsys.readouterr().out
    for flag in ("--max-model-len", "--gpu-memory-utilization", "--hf-overrides", "--api-key"):
        assert flag in text


def test_a_mistyped_flag_is_refused_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("serve", "model", "--max-model-length", "8k") != 0
    output = capsys.readouterr()
    assert "--max-model-len" in output.err + output.out


def test_flags_of_vllms_without_a_counterpart_are_refused_with_the_cure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ("--cpu-offload-gb", "4", "--speculative_config={}", "--enable-lora", "--swap-space=1")
    assert run("serve", "model", *flags, "--compilation-config.mode=3") == 2
    message = capsys.readouterr().err
    assert "--cpu-offload-gb: weights stay on the device: use more GPUs" in message
    assert "--speculative_config: there is no speculative decoding: leave it out" in message
    assert "--enable-lora: adapters are not loaded: merge them" in message
    assert "--swap-space: preempted requests are computed again" in message
    assert "--compilation-config: graphs are recorded" in message
    assert run("serve", "-O3", "-dcp", "2", "--no-enable-dbo", "--numa_bind") == 2
    message = capsys.readouterr().err
    assert "-O3: graphs are recorded" in message
    assert "-dcp: a request's KV is not split over GPUs" in message
    assert "--no-enable-dbo: the host plans ahead" in message
    assert "--numa_bind: processes are not tied to cores: start it under numactl" in message


def test_a_fraction_is_refused_where_a_whole_number_belongs_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "glimt.toml"
    file.write_text("[serve]\nmax-num-seqs = 2.5\n")
    monkeypatch.setenv("GLIMT_PORT", "80.5")
    assert run("serve", "-tp", "1.5", "--config", str(file)) == 2
    message = capsys.readouterr().err
    for which in ("-tp 1.5", "max-num-seqs] 2.5", "GLIMT_PORT 80.5"):
        assert f"{which}: must be a whole number" in message
    assert run("plan", "GLM-4.5V", "--gpus", "2.5") == 2
    assert "--gpus 2.5: must be a whole number" in capsys.readouterr().err
    with pytest.raises(BadSettings, match=r"-dp 2\.5: must be a whole number"):
        settings_of(["-dp", "2.5"])


def test_the_address_of_a_kubernetes_service_is_no_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLIMT_PORT", "tcp://10.96.0.7:8000")
    assert run("serve", "-tp", "0") == 2
    note, *_, problem = capsys.readouterr().err.strip().splitlines()
    assert "GLIMT_PORT=tcp://10.96.0.7:8000 comes from a Kubernetes service" in note
    assert problem.strip() == "- --tensor-parallel-size 0: must be at least 1"


def test_no_flag_of_our_own_is_refused_as_somebody_elses() -> None:
    groups = (ModelSettings, CacheSettings, MediaSettings, ParallelSettings, ServerSettings)
    for group in groups:
        for name in group.__dataclass_fields__:
            refuse_elsewheres(["serve", f"--{name.replace('_', '-')}"])


def test_the_missions_flags_are_all_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serve", str(tmp_path / "GLM-4.5V-FP8"), *MISSION) == 2
    message = capsys.readouterr().err
    assert "these settings cannot be used" not in message
    assert str(tmp_path / "GLM-4.5V-FP8") in message


@pytest.mark.parametrize(
    "settings",
    [
        Settings(model="m", parallel=ParallelSettings(tensor_parallel_size=0)),
        Settings(model="m", parallel=ParallelSettings(data_parallel_size=0)),
        Settings(
            model="m",
            parallel=ParallelSettings(tensor_parallel_size=2, distributed_executor_backend="uni"),
        ),
        Settings(model="m", parallel=ParallelSettings(data_parallel_size_local=2)),
        Settings(model="m", parallel=ParallelSettings(headless=True)),
        Settings(model="m", parallel=ParallelSettings(master_addr="10.0.0.1")),
        Settings(model="m", parallel=replace(TWO_NODES, master_addr=None)),
        Settings(model="m", parallel=replace(TWO_NODES, master_addr="0.0.0.0")),
        Settings(model="m", parallel=replace(TWO_NODES, master_token=None)),
        Settings(model="m", parallel=replace(TWO_NODES, master_token="short")),
        Settings(model="m", parallel=replace(TWO_NODES, master_port=0x10000)),
        Settings(model="m", parallel=replace(TWO_NODES, node_rank=2)),
        Settings(model="m", parallel=replace(TWO_NODES, tensor_parallel_size=3)),
        Settings(model="m", parallel=replace(TWO_NODES, data_parallel_size=2)),
        Settings(model="m", parallel=replace(TWO_NODES, headless=True)),
        Settings(model="m", server=ServerSettings(port=70000)),
        Settings(model="m", server=ServerSettings(enable_auto_tool_choice=True)),
        Settings(model="m", cache=CacheSettings(gpu_memory_utilization=1.5)),
        Settings(model="m", cache=CacheSettings(max_num_seqs=0)),
        Settings(model="m", cache=CacheSettings(max_num_seqs=64, max_num_batched_tokens=32)),
        Settings(model="m", cache=CacheSettings(enable_chunked_prefill=False)),
        Settings(model="m", models=ModelSettings(hf_overrides="{")),
        Settings(model="m", models=ModelSettings(max_model_len="many")),
        Settings(model="m", media=MediaSettings(limit_mm_per_prompt="[1]")),
        Settings(model="m", media=MediaSettings(mm_processor_cache_gb=0)),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Settings) -> None:
    with pytest.raises(BadSettings):
        check(settings)


@pytest.mark.parametrize("node_rank", [0, 1])
def test_ranks_may_be_spread_over_machines(node_rank: int) -> None:
    parallel = replace(TWO_NODES, node_rank=node_rank, headless=bool(node_rank))
    assert not check(Settings(model="m", parallel=parallel))


@pytest.mark.parametrize(
    "flag", ["--api-key", "--admin-key", "--served-model-name", "--allowed-media-domains"]
)
def test_a_list_without_a_value_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--api-key $KEY` of an unset variable must not open the server to everybody."""
    assert run("serve", flag) == 2
    assert f"{flag}: it was given without a value" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["zai-org/GLM-4.5V-FP8", "."])
def test_a_model_that_a_list_has_swallowed_is_told_of(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The built-in model would be served instead, with the model's name as one more key."""
    assert run("serve", "--api-key", "secret", model) == 2
    told = capsys.readouterr().err
    assert f"glimt serve {model} --api-key" in told
    assert "secret" not in told


def test_an_empty_key_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLIMT_API_KEY", "")
    assert run("serve", "/no/such/folder") == 2
    assert "GLIMT_API_KEY is set and empty" in capsys.readouterr().err


def test_all_problems_are_listed_at_once() -> None:
    settings = Settings(
        model="m",
        parallel=ParallelSettings(tensor_parallel_size=0, nnodes=0),
        server=ServerSettings(port=-1),
    )
    with pytest.raises(BadSettings) as caught:
        check(settings)
    assert len(caught.value.problems) == 3


def test_what_has_no_effect_is_said() -> None:
    notes = check(
        Settings(
            model="m",
            parallel=ParallelSettings(enable_expert_parallel=True),
            media=MediaSettings(mm_encoder_tp_mode="data"),
            server=ServerSettings(host="0.0.0.0"),
        )
    )
    assert len(notes) == 3


@pytest.mark.parametrize(
    ("text", "count"),
    [("65536", 65536), ("64k", 64_000), ("64K", 65_536), ("25.6k", 25_600), ("4G", 2**32)],
)
def test_counts_have_units(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "1.5", "25.6K", "64kb", "nan", "inf"])
def test_counts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_count(text)


def test_a_config_file_gives_flags_and_the_command_line_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "glimt.toml"
    file.write_text("[serve]\nport = 70000\n")
    assert run("serve", "model", "--config", str(file)) == 2
    assert "--port 70000" in capsys.readouterr().err
    assert run("serve", "model", "--config", str(file), "--port", "70001") == 2
    assert "--port 70001" in capsys.readouterr().err


def test_a_missing_config_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "model", "--config", "/nowhere/glimt.toml") == 2
    assert "/nowhere/glimt.toml" in capsys.readouterr().err


def test_the_environment_gives_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLIMT_PORT", "70002")
    assert run("serve", "model") == 2
    assert "--port 70002" in capsys.readouterr().err


def test_lists_may_be_written_as_vllm_writes_them() -> None:
    assert names_in(['["*"]']) == ("*",)
    assert names_in(['["a", "b"]']) == ("a", "b")
    assert names_in(["a", "b"]) == ("a", "b")
    assert names_in(["[a"]) == ("[a",)
    assert names_in(None) == ()


def test_a_reader_that_has_seen_enough_causes_no_traceback() -> None:
    command = [sys.executable, "-m", "glimt", "plan", "GLM-4.5V-FP8", "--gpu", "h200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() != 0
