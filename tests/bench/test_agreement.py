"""`python -m benchmarks.agreement`: what rounds of runs say of two clients."""

import contextlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.agreement import __main__ as agreement
from benchmarks.agreement import report
from benchmarks.agreement.clients import client
from benchmarks.agreement.loads import COMPLETIONS, Load, model_kinds, model_loads
from benchmarks.agreement.place import Halves, Stolen, gpus
from benchmarks.agreement.servers import scripted
from benchmarks.agreement.verdict import Difference, Verdict, answer
from glimt.builtin.model import model_folder


def result(ttft_ms: float, tokens: int = 128) -> dict[str, Any]:
    """A result whose other means follow from the first."""
    means = {"mean_ttft_ms": ttft_ms, "mean_tpot_ms": 10.0, "mean_itl_ms": 10.0}
    totals = {"completed": 2, "failed": 0, "total_input_tokens": 7, "total_output_tokens": tokens}
    return {**means, **totals, "mean_e2el_ms": ttft_ms + 1270}


def verdict_of(vllm: list[float], glimt: list[float], tokens: int = 128) -> Verdict:
    return Verdict("a load", [*map(result, vllm)], [result(ms, tokens) for ms in glimt])


def test_a_difference_is_that_of_pairs_and_has_students_interval() -> None:
    """The server's drift from 100 to 160 ms is in both sides, and not in the difference."""
    found = Difference.of([100, 120, 140, 160], [98, 119, 137, 156], 130)
    assert (found.vllm, found.glimt) == (130, 127.5)
    assert found.interval.mean == pytest.approx(-2.5)
    assert found.interval.half == pytest.approx(3.1824463 * (5 / 3) ** 0.5 / 2, rel=1e-6)
    assert found.allowed == pytest.approx(3.6)


def test_the_noise_floor_is_what_a_client_differs_from_itself_about_zero() -> None:
    """Two runs of each client a round: 3 and 4 ms apart, whatever is between the clients."""
    found = Difference.of([100, 103], [50, 54], 100)
    assert found.floor == pytest.approx(4.3026527 * math.sqrt((9 + 16) / 4), rel=1e-6)
    assert Difference.of([100, 100], [50, 50], 100).floor == 0


@pytest.mark.parametrize(
    ("glimt", "expected", "mark"),
    [
        ([99, 99.1, 98.9, 99], "agree", ""),
        ([99, 90, 108, 99], "undecided", " ?"),  # the mean is -1, its interval holds -3 and +3
        ([104, 95, 113, 104], "undecided", " ?"),
        ([104, 104.1, 103.9, 104], "differ", " ✗"),
        ([96, 96.1, 95.9, 96], "differ", " ✗"),
    ],
)
def test_neither_agreement_nor_difference_is_told_by_an_interval_that_allows_both(
    glimt: list[float], expected: str, mark: str
) -> None:
    found = Difference.of([100, 100, 100, 100], glimt, 100)
    assert found.answer == expected
    assert str(found) == found.plain + mark


def test_one_undecided_mean_is_no_agreement_and_one_that_differs_outweighs_it() -> None:
    near, noisy = verdict_of([100, 101], [99, 100]), verdict_of([100, 101], [90, 131])
    far = verdict_of([100, 101], [110, 111])
    assert answer([near]) == "agree"
    assert answer([near, noisy]) == "undecided"
    assert answer([near, noisy, far]) == "differ"
    assert answer([verdict_of([100, 101], [99, 100], tokens=127)]) == "differ"


def test_conclusions_begin_with_the_verdict_and_name_what_stands_in_its_way() -> None:
    lines = report.conclusions([verdict_of([100, 101], [99, 100])])
    assert lines == [
        "The clients agree.",
        "Token totals are equal in all runs.",
        "Means within 2 % + 1 ms: of 4, 4 agree.",
    ]
    lines = report.conclusions([verdict_of([100, 101], [110, 111], tokens=127)])
    assert lines[0] == "The clients DIFFER."
    assert lines[1] == "DIFFERS: a load: total_output_tokens [128] and [127]"
    assert lines[2] == "DIFFERS: a load: TTFT 100.50 · 110.50: +10.00 ± 0.00, allowed 3.01"


def test_an_undecided_mean_says_how_noisy_the_server_was_and_how_many_pairs_it_wants() -> None:
    noisy = verdict_of([100, 100, 100, 100], [99, 90, 108, 99])
    ttft = noisy.means()["mean_ttft_ms"]
    wanted = 4 * (ttft.interval.half / (3 - 1)) ** 2
    assert ttft.pairs_wanted == pytest.approx(wanted)
    (line,) = [each for each in report.conclusions([noisy]) if "TTFT" in each]
    assert line.startswith("UNDECIDED: a load: TTFT 100.00 · 99.00: -1.00 ± ")
    assert line.endswith(
        f"itself ± {ttft.floor:.2f}; if they agree, about {math.ceil(wanted)} pairs show it"
    )
    beyond = verdict_of([100, 100, 100, 100], [104, 95, 113, 104])
    assert math.isinf(beyond.means()["mean_ttft_ms"].pairs_wanted)


def test_the_servers_part_is_taken_off_where_the_wire_was_watched() -> None:
    vllm, glimt = result(103), result(140)
    vllm["wire"], glimt["wire"] = {"mean_ttft_ms": 100.0}, {"mean_ttft_ms": 139.5}
    found = Verdict("a load", [vllm, vllm], [glimt, glimt])
    assert found.on_wire()["mean_ttft_ms"].interval.mean == pytest.approx(39.5)
    assert found.added()["mean_ttft_ms"].interval.mean == pytest.approx(-2.5)
    assert found.added()["mean_ttft_ms"].answer == "agree"  # 2 % of 103 ms, not of the added 3
    assert (
        report.conclusions([found])[-1] == "What the clients add, within the same: of 1, 1 agree."
    )


def test_requests_at_fixed_gaps_have_room_for_what_one_takes() -> None:
    kinds = model_kinds(Path("arena"), [400, 4000], tokens=8)
    found = model_loads(kinds, [0.5, 0.2, 0.001], seconds=4)
    rates = [load.options[load.options.index("--request-rate") + 1] for load in found[::2]]
    assert rates == ["1.2", "3.1", "10"]  # 1 / (1.6 x 0.5 s), 1 / (1.6 x 0.2 s), the highest
    assert [load.count for load in found] == [5, 8, 12, 19, 40, 64]
    assert all(load.options[-2:] == ("--burstiness", "inf") for load in found[::2])
    assert all(load.options[-2:] == ("--max-concurrency", "1") for load in found[1::2])
    assert "4000" in found[4].options
    assert "4000" in found[5].options


def test_servers_and_clients_have_halves_of_the_cores() -> None:
    halves = Halves.of([7, 1, 3, 5, 9])
    assert (halves.serving, halves.asking) == ((1, 3), (5, 7, 9))
    assert str(halves) == "servers on 2 cores, clients on 3 cores"
    assert Halves.of([4]) == Halves((4,), (4,))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="taskset is Linux's")
def test_a_command_runs_on_its_cores_in_a_thread_each() -> None:
    core = min(os.sched_getaffinity(0))
    ask = "import os; print(*os.sched_getaffinity(0), os.environ['OMP_NUM_THREADS'])"
    command = [*Halves.before([core]), sys.executable, "-c", ask]
    assert subprocess.check_output(command, text=True).split() == [str(core), "1"]


def test_a_host_takes_a_share_of_the_time() -> None:
    assert 0 <= Stolen().share() <= 1


def test_no_gpu_is_there_where_none_is_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == []


def test_loads_are_chosen_by_a_part_of_their_names() -> None:
    offered = [
        Load("pictures, alone", 1, ()),
        Load("text, alone", 1, ()),
        Load("text, paced", 1, ()),
    ]
    assert agreement.chosen(offered, []) == offered
    assert agreement.chosen(offered, ["pictures", "paced"]) == [offered[0], offered[2]]
    with pytest.raises(SystemExit, match="none of"):
        agreement.chosen(offered, ["video"])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the witness is Linux's")
def test_a_client_agrees_with_itself_in_what_it_counts(tmp_path: Path) -> None:
    """Glimt's client on both sides, the scripted server, and the wire watched where that may be."""
    options = (*COMPLETIONS, "--random-input-len", "20", "--random-output-len", "5")
    load = Load("a few", 3, (*options, "--max-concurrency", "3"))
    with contextlib.ExitStack() as stack:
        sides = {
            side: stack.enter_context(
                client("glimt", Path(sys.executable), [], tmp_path / f"{side}.log")
            )
            for side in ("vllm", "glimt")
        }
        target = stack.enter_context(scripted([]))
        clients = agreement.Clients(sides, model_folder(), wire=os.geteuid() == 0)
        (found,) = agreement.measure(clients, target, [load], until_s=0.0)
        with pytest.raises(SystemExit, match="glimt's client: it ended with"):
            sides["glimt"](["--nonsense"])
    assert len(found.vllm) == len(found.glimt) == 2
    assert found.unequal() == []
    assert found.glimt[0]["total_output_tokens"] == 15
    assert "| a few | 2 | " in report.means_table([found])
    assert report.floor_table([found]).count("\n") == 2
    if os.geteuid() == 0:
        assert all(each["wire"]["mean_ttft_ms"] >= 99 for each in found.vllm)
        assert report.wire_table([found]).count("\n") == 2


def test_runs_are_told_again_under_what_was_measured_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each place has its part of the document; another is not touched."""
    near, far = verdict_of([9, 9], [9, 9]), verdict_of([100, 101], [110, 111])
    found = [[name, [vars(each)]] for name, each in (("one", near), ("two", far))]
    runs, document = tmp_path / "runs.json", tmp_path / "a.md"
    runs.write_text(json.dumps({"place": "gpu", "head": "H", "found": found}))
    begin, end = report.marks("gpu")
    other = "\n".join(report.marks("cpu"))
    document.write_text(f"before\n{other}\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["agreement", "--runs", str(runs), "--record", str(document)])
    assert agreement.main() == 1
    text = document.read_text()
    assert text.startswith(f"before\n{other}\n{begin}\n\nH\n\nAgainst one:\n\n| load |")
    assert text.endswith(f"{end}\nafter\n")
    assert "old" not in text
    assert text.count("| a load | 2 | 7 + 128 |") == 2
    assert "* DIFFERS: a load: TTFT" in text
    assert capsys.readouterr().out.strip() in text


def test_a_new_place_comes_after_the_others(tmp_path: Path) -> None:
    document, (begin, end) = tmp_path / "a.md", report.marks("moon")
    cpu, gpu = ("\n".join(report.marks(place)) for place in ("cpu", "gpu"))
    document.write_text(f"before\n{cpu}\n{gpu}\nafter\n")
    report.record(document, "moon", "new\n")
    expected = f"before\n{cpu}\n{gpu}\n\n{begin}\n\nnew\n{end}\nafter\n"
    assert document.read_text() == expected
    report.record(document, "moon", "newer\n")
    assert document.read_text() == expected.replace("new\n", "newer\n")
    document.write_text("nothing\n")
    with pytest.raises(SystemExit, match="has no line that begins with"):
        report.record(document, "moon", "new\n")
