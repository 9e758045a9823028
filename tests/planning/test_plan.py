"""`glimt plan`: what holds for every plan, and what its command says."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.cli import app, main
from glimt.config_check import check
from glimt.copies import copies_of
from glimt.errors import BadSettings, NotEnoughMemory
from glimt.planning.constants import load_constants
from glimt.planning.fit import Room
from glimt.planning.layout import Cluster
from glimt.planning.load import Workload
from glimt.planning.plan import Plan, Question, make_plan
from glimt.planning.published import published
from glimt.planning.serve_line import (
    TOKEN,
    TOKEN_LINE,
    command_lines,
    condensed,
    refusals,
    settings_of,
)
from tests.support.configs import tiny_config

CONSTANTS = load_constants()
MODELS = ["GLM-4.5V-FP8", "GLM-4.5V", "GLM-4.6V-FP8", "GLM-4.6V-Flash", "GLM-4.1V-9B-Thinking"]


def question(
    model: str = "GLM-4.5V-FP8",
    gpus: int = 4,
    *,
    nodes: int = 1,
    gpu: str = "h200",
    rate: float | None = None,
    images: int = 1,
    output: int = 128,
) -> Question:
    config = published(model)
    assert config is not None
    return Question(
        config=config,
        gpu=CONSTANTS.gpu(gpu),
        cluster=Cluster(gpus, nodes),
        work=Workload(90, output, images, 1369, 8192),
        room=Room(0.92, 256, None),
        rate=rate,
        fp8=config.quantized,
        fp8_kv=False,
        constants=CONSTANTS,
    )


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def planned(model: str, gpus: int, gpu: str) -> Plan | None:
    try:
        return make_plan(question(model, gpus, gpu=gpu), model)
    except NotEnoughMemory:
        return None


def most(plan: Plan | None) -> tuple[int, int, float]:
    """Most KV tokens and longest request over all layouts, and the soonest answer (negative)."""
    if plan is None:
        return 0, 0, float("-inf")
    fitting = [e for e in plan.estimates if e.fit.fits]
    return (
        max(e.fit.all_kv_tokens for e in fitting),
        max(e.fit.longest for e in fitting),
        -min(e.answer_s(128) for e in fitting),
    )


@pytest.mark.parametrize("gpu", ["h100", "h200"])
@pytest.mark.parametrize("model", MODELS)
def test_more_gpus_never_fit_less_and_never_answer_later(model: str, gpu: str) -> None:
    plans = [most(planned(model, gpus, gpu)) for gpus in (1, 2, 4, 8)]
    for fewer, more in itertools.pairwise(plans):
        assert all(a <= b for a, b in zip(fewer, more, strict=True))


@pytest.mark.parametrize("model", ["GLM-4.5V-FP8", "GLM-4.6V-Flash"])
def test_more_machines_carry_more(model: str) -> None:
    rates = [
        max(e.highest_rate for e in make_plan(question(model, 8, nodes=nodes), model).estimates)
        for nodes in (1, 2)
    ]
    assert rates == sorted(rates)


@settings(max_examples=8, deadline=None)
@given(
    rates=st.tuples(st.floats(0.1, 60), st.floats(0.1, 60)),
    images=st.integers(0, 3),
    output=st.integers(1, 1024),
    gpus=st.sampled_from([1, 2]),
)
def test_a_higher_rate_is_never_answered_sooner(
    rates: tuple[float, float], images: int, output: int, gpus: int
) -> None:
    low, high = sorted(rates)
    at_low, at_high = (
        {
            e.layout.name: e
            for e in make_plan(
                question(gpus=gpus, rate=rate, images=images, output=output), ""
            ).estimates
        }
        for rate in (low, high)
    )
    for name, slow in at_high.items():
        fast = at_low[name]
        assert fast.loaded is not None
        assert slow.loaded is not None
        assert fast.answer_s(output) <= slow.answer_s(output) * (1 + 1e-6)
        if slow.loaded.carried:
            assert fast.loaded.carried
            assert slow.loaded.running <= slow.fit.all_requests
            # Little's law: requests that run = rate x time that one runs.
            runs_s = output * slow.loaded.tpot_s
            assert slow.loaded.running == pytest.approx(high * runs_s, rel=1e-3, abs=1e-3)
        if abs(high / slow.highest_rate - 1) > 1e-3:
            assert slow.loaded.carried == (high < slow.highest_rate)


@pytest.mark.parametrize("model", MODELS)
def test_no_estimate_is_below_the_floor(model: str) -> None:
    for e in make_plan(question(model, 8), model).estimates:
        assert e.floor_ttft_s < e.ttft_s
        assert e.floor_tpot_s < e.tpot_s


def test_tensor_parallel_for_one_request_copies_for_many() -> None:
    """The guide's advice, as numbers."""
    alone = make_plan(question(), "")
    assert alone.best.layout.tp == 4
    busy = make_plan(question(rate=20), "")
    assert busy.best.layout.dp > 1
    assert busy.best.loaded is not None
    assert busy.best.loaded.carried


def test_what_a_rate_needs_is_said_when_it_is_too_much() -> None:
    plan = make_plan(question(rate=100), "")
    assert plan.nodes_needed is not None
    assert plan.nodes_needed > 1
    enough = replace(question(rate=100), cluster=Cluster(4, plan.nodes_needed))
    assert make_plan(enough, "").nodes_needed is None


def test_a_rate_near_the_end_is_said_to_be() -> None:
    most = max(e.highest_rate for e in make_plan(question(), "").estimates)
    near = make_plan(question(rate=0.97 * most), "").reasons
    assert "little more, and queues grow" in near[-2]
    assert near[-1] == "what ends it: prompts and images take the time"


@pytest.mark.parametrize(
    ("gpus", "images", "output", "said", "helps"),
    [
        (8, 4, 16, "prompts and images take the time", {"work": {"num_images": 1}}),
        (1, 0, 2000, "requests fit beside the weights", {"fp8_kv": True}),
        (2, 0, 500, "--max-num-seqs 256 in a copy", {"room": {"max_num_seqs": 400}}),
    ],
)
def test_what_ends_a_layout_is_what_more_of_would_help(
    gpus: int, images: int, output: int, said: str, helps: dict[str, Any]
) -> None:
    asked = question(gpus=gpus, images=images, output=output, rate=900)
    plan = make_plan(asked, "")
    assert said in plan.reasons[-1]
    for name, change in helps.items():
        if isinstance(change, dict):
            change = replace(getattr(asked, name), **change)
        more = make_plan(replace(asked, **{name: change}), "")
        assert more.best.highest_rate > 1.05 * plan.best.highest_rate


def test_copies_that_share_experts_fit_where_whole_copies_do_not() -> None:
    found = {e.layout.name: e for e in make_plan(question(gpus=4, gpu="h100"), "").estimates}
    assert not found["DP4"].fit.fits
    assert found["DP4 + EP"].fit.fits
    assert found["DP4 + EP"].tpot_s > found["TP4 + EP"].tpot_s


def test_gpus_may_be_left_over_where_that_answers_sooner_or_is_all_that_fits() -> None:
    of_three = make_plan(question(gpus=3), "")
    assert of_three.best.layout.name == "TP2"
    assert of_three.reasons[0].startswith("TP2 (1 idle) answers a single request soonest")
    assert {e.layout.name for e in of_three.estimates} == {"TP2", "TP2 + EP", "DP3"}
    of_six = make_plan(question("GLM-4.5V", 6, gpu="h100"), "")
    assert [e.layout.name for e in of_six.estimates if e.fit.fits] == ["TP4", "TP4 + EP"]
    assert all(e.layout.num_gpus == 12 for e in make_plan(question(gpus=4, nodes=3), "").estimates)


@pytest.mark.parametrize(("gpus", "gpu", "enough"), [(1, "h200", 2), (1, "h100", 4)])
def test_a_model_that_does_not_fit_is_said_to_fit_on_more(gpus: int, gpu: str, enough: int) -> None:
    with pytest.raises(NotEnoughMemory, match=f"try {enough} GPUs"):
        make_plan(question("GLM-4.5V", gpus, gpu=gpu), "GLM-4.5V")
    make_plan(question("GLM-4.5V", enough, gpu=gpu), "GLM-4.5V")


def test_what_does_not_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(NotEnoughMemory, match=r"--quantization fp8.*--kv-cache-dtype fp8"):
        make_plan(question("GLM-4.5V", 1), "GLM-4.5V")


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_the_commands_are_ones_that_serve_reads_back_to_the_same_settings(
    model: str, nodes: int
) -> None:
    plan = make_plan(question(model, 8, nodes=nodes, gpu="h100", rate=5), model)
    lines = command_lines(plan, f"zai-org/{model}", quantize=False)
    assert len(lines) == nodes
    for node, line in enumerate(lines):
        wanted = settings_of(plan, f"zai-org/{model}", quantize=False, node=node)
        token = wanted.parallel.master_token
        assert TOKEN_LINE.endswith(f"GLIMT_MASTER_TOKEN={token or TOKEN}")
        wanted = replace(wanted, parallel=replace(wanted.parallel, master_token=None))
        found = read_back(line)
        for group in ("models", "cache", "media", "parallel", "server"):
            assert found.get(group, getattr(wanted, group)) == getattr(wanted, group)


def read_back(line: str) -> dict[str, Any]:
    words = shlex.split(line)
    assert words[:2] == ["glimt", "serve"]
    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    return dict(bound.arguments)


@pytest.fixture(scope="module")
def of_four_machines() -> Plan:
    return make_plan(question("GLM-4.5V-FP8", 8, nodes=4, gpu="h100"), "")


@pytest.mark.parametrize("name", ["TP2 x DP16", "TP8 x DP4", "TP16 x DP2", "TP32"])
def test_each_machine_of_a_plan_has_its_copies_and_knows_where_the_first_is(
    of_four_machines: Plan, name: str
) -> None:
    plan = of_four_machines
    best = next(e for e in plan.estimates if e.layout.name == name)
    plan, layout = replace(plan, best=best), best.layout
    assert refusals(plan, "m", quantize=False) == []
    machines = [read_back(line)["parallel"] for line in command_lines(plan, "m", quantize=False)]
    copies = [copies_of(parallel) for parallel in machines]
    nodes_each = layout.tp // 8 or 1
    first, *others = [each for each in copies if each.role != "ranks"]
    assert first.role == ("head" if layout.dp > 1 else "all")
    assert all(each.role == "node" for each in others)
    assert [index for each in (first, *others) for index in each.local] == list(range(layout.dp))
    addresses = {parallel.data_parallel_address for parallel in machines}
    assert addresses == ({"NODE0"} if layout.dp > 1 else {None})
    if nodes_each > 1:
        firsts = [f"NODE{node // nodes_each * nodes_each}" for node in range(4)]
        assert [m.master_addr for m in machines] == firsts
        assert [m.node_rank for m in machines] == [node % nodes_each for node in range(4)]
    assert [m.headless for m in machines] == [False, True, True, True]


def test_of_many_machines_one_line_stands_for_all_but_the_first() -> None:
    plan = make_plan(question("GLM-4.5V-FP8", 4, nodes=6, rate=150), "")
    lines = command_lines(plan, "m", quantize=False)
    (_, first), (where, other) = condensed(plan, lines)
    assert first == lines[0]
    assert where.endswith("NODE=1 … NODE=5")
    for node in range(1, 6):
        typed = subprocess.run(
            ["bash", "-c", f"NODE={node}; echo {other}"], capture_output=True, text=True, check=True
        )
        assert typed.stdout.strip() == lines[node]


def test_a_command_for_one_gpu_starts_in_this_version() -> None:
    plan = make_plan(question("GLM-4.5V-FP8", 1), "GLM-4.5V-FP8")
    check(settings_of(plan, "zai-org/GLM-4.5V-FP8", quantize=False))


# ------------------------------------------------------------------------------------ the command


def test_the_plan_needs_neither_torch_nor_the_network() -> None:
    code = (
        "import sys; from glimt.cli import main\n"
        "try: main(['plan', 'zai-org/GLM-4.5V-FP8', '--gpus', '4', '--rate', '20'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'numpy', 'starlette', 'zmq', 'aiohttp', 'huggingface_hub')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_the_report_names_layouts_reasons_and_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("plan", "GLM-4.5V-FP8", "--gpu", "h200", "--gpus", "4", "--rate", "20") == 0
    text = capsys.readouterr().out
    for words in (
        "TP4 + EP",
        "1 image of 1,369",
        "-> DP4 carries 20 requests/s",
        "glimt serve zai-org/GLM-4.5V-FP8 --data-parallel-size 4",
        "TP2 x DP2 + EP",
        "share experts and step together",
        "TP1 on h200: a step took 4.77 ms at 1 (estimate 4.8)",
        "TP2 on h200: a step took 3.45 ms at 1 (estimate 3.5)",
    ):
        assert words in text


def test_a_narrow_terminal_gets_tables_that_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "80")
    assert run("plan", "GLM-4.5V-FP8", "--gpus", "4", "--rate", "20") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    assert sum(row.startswith("│ TP4 + EP") for row in rows) == 3
    assert all(len(row) <= 80 for row in rows if row.startswith(("┃", "│", "┏")))
    assert not any("…" in row for row in rows)


def test_the_json_has_what_the_table_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "GLM-4.6V", "--gpu", "h100", "--gpus", "8", "--rate", "9", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recommended"] == plan["layouts"][0]["name"]
    assert plan["weights"] == "16 bit"
    assert any(not layout["fits"] for layout in plan["layouts"])  # DP8 cannot
    carried = plan["layouts"][0]["at_rate"]
    assert carried["carried"]
    assert carried["output_rate"] == pytest.approx(9 * 128)
    assert {constant["source"] for constant in plan["constants"]} <= {
        "measured",
        "published",
        "calculated",
        "assumed",
    }


def test_a_folder_is_planned_by_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("glm4v_moe")))
    words = ["plan", str(tmp_path), "--images", "0", "--max-model-len", "2K", "--json"]
    assert run(*words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["layouts"][0]["longest_request"] == 2048
    assert plan["layouts"][0]["weight_bytes_per_gpu"] < 10e6


def test_own_measurements_replace_constants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[gpu.h200]\nbandwidth = { value = 2.15e12, source = "measured", note = "half as fast" }\n'
    )
    words = ["plan", "GLM-4.5V-FP8", "--json"]
    assert run(*words) == 0
    fast = json.loads(capsys.readouterr().out)["layouts"][0]["floor"]["tpot_s"]
    assert run(*words, "--constants", str(mine)) == 0
    slow = json.loads(capsys.readouterr().out)["layouts"][0]["floor"]["tpot_s"]
    assert slow == pytest.approx(2 * fast)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "gtx"], "--gpu gtx: its numbers are not known"),
        (["--gpus", "0", "--rate", "-1"], "--gpus 0: must be at least 1"),
        (["--image-size", "huge"], "write width x height"),
        (["--max-model-len", "1M"], "positions"),
        (["--input", "70000"], "is longer than 65,536"),
        (["--constants", "/nowhere.toml"], "--constants /nowhere.toml"),
        (["--gpus", "1", "--gpu", "h100"], "does not fit on 1 x NVIDIA H100"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_cause(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", "GLM-4.5V-FP8", *arguments) == 2
    assert words in capsys.readouterr().err


def test_a_constant_without_a_source_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[gpu.h200]\nbandwidth = { value = -1, source = "hearsay", note = "" }\nspeed = 3\n'
    )
    with pytest.raises(BadSettings) as caught:
        load_constants(str(mine))
    assert len(caught.value.problems) == 2
