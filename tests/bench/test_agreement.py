"""`python -m benchmarks.agreement`: what pairs of runs say of two clients."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.agreement import __main__ as agreement
from benchmarks.agreement.clients import glimt
from benchmarks.agreement.loads import COMPLETIONS, Load
from benchmarks.agreement.servers import scripted
from benchmarks.agreement.verdict import (
    Difference,
    Verdict,
    conclusions,
    means_table,
    wire_table,
)
from glimt.builtin.model import model_folder


def result(ttft_ms: float, tokens: int = 128) -> dict[str, Any]:
    """A result whose other means follow from the first."""
    means = {"mean_ttft_ms": ttft_ms, "mean_tpot_ms": 10.0, "mean_itl_ms": 10.0}
    totals = {"completed": 2, "failed": 0, "total_input_tokens": 7, "total_output_tokens": tokens}
    return {**means, **totals, "mean_e2el_ms": ttft_ms + 1270}


def verdict_of(vllm: list[float], glimt: list[float], tokens: int = 128) -> Verdict:
    return Verdict("a load", [*map(result, vllm)], [result(ms, tokens) for ms in glimt])


def test_a_difference_is_that_of_pairs_and_has_students_interval() -> None:
    """The server's drift from 100 to 140 ms is in both sides, and not in the difference."""
    found = Difference.of([100, 120, 140], [98, 119, 137], 120)
    assert (found.vllm, found.glimt) == (120, 118)
    assert found.interval.mean == pytest.approx(-2)
    assert found.interval.half == pytest.approx(4.3026527 / 3**0.5, rel=1e-6)
    assert found.allowed == pytest.approx(3.4)


@pytest.mark.parametrize(
    ("glimt", "is_within", "is_certain", "mark"),
    [
        ([99, 99.1, 98.9], True, True, ""),
        ([99, 90, 108], True, False, " ?"),  # the mean is -1, its interval holds -3 and +3
        ([104, 95, 113], False, False, " ✗ ?"),
        ([104, 104.1, 103.9], False, True, " ✗"),
    ],
)
def test_agreement_is_shown_only_by_an_interval_that_allows_nothing_else(
    glimt: list[float], is_within: bool, is_certain: bool, mark: str
) -> None:
    found = Difference.of([100, 100, 100], glimt, 100)
    assert (found.is_within, found.is_certain) == (is_within, is_certain)
    assert str(found) == found.plain + mark


def test_equal_totals_and_near_means_agree() -> None:
    lines, does_agree = conclusions([verdict_of([100, 101], [99, 100])])
    assert does_agree
    assert lines[0] == "Token totals are equal in all runs."
    assert lines[-1] == (
        "Means within 2 % + 1 ms: 4 of 4, 4 of them with their whole 95 % interval."
    )


def test_other_totals_disagree_whatever_the_means_say() -> None:
    lines, does_agree = conclusions([verdict_of([100, 101], [99, 100], tokens=127)])
    assert not does_agree
    assert lines[0] == "DISAGREES: a load: total_output_tokens [128] and [127]"


def test_a_mean_too_far_off_is_told_from_runs_that_differ_too_much() -> None:
    far, does_agree = conclusions([verdict_of([100, 101], [110, 111])])
    assert not does_agree
    assert any(line.startswith("DISAGREES: a load: TTFT") for line in far)
    noisy, _ = conclusions([verdict_of([100, 101], [90, 131])])
    assert any(line.startswith("OPEN, the runs differ too much: a load: TTFT") for line in noisy)


def test_the_servers_part_is_taken_off_where_the_wire_was_watched() -> None:
    vllm, glimt = result(103), result(140)
    vllm["wire"], glimt["wire"] = {"mean_ttft_ms": 100.0}, {"mean_ttft_ms": 139.5}
    found = Verdict("a load", [vllm, vllm], [glimt, glimt])
    assert found.on_wire()["mean_ttft_ms"].interval.mean == pytest.approx(39.5)
    assert found.added()["mean_ttft_ms"].interval.mean == pytest.approx(-2.5)
    assert found.added()["mean_ttft_ms"].is_within  # 2 % of 103 ms, not of the added 3
    lines, _ = conclusions([found])
    assert lines[-1].startswith("What the clients add, within the same: 1 of 1")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the witness is Linux's")
def test_a_client_agrees_with_itself_in_what_it_counts(tmp_path: Path) -> None:
    """Glimt's client on both sides, the scripted server, and the wire watched where that may be."""
    options = (*COMPLETIONS, "--random-input-len", "20", "--random-output-len", "5")
    load = Load("a few", 3, (*options, "--max-concurrency", "3"))
    sides = {"vllm": glimt([]), "glimt": glimt([])}
    clients = agreement.Clients(sides, model_folder(), wire=os.geteuid() == 0)
    with scripted([]) as target:
        (found,) = agreement.measure(clients, target, [load], until_s=0.0)
    assert len(found.vllm) == len(found.glimt) == 2
    assert found.unequal() == []
    assert found.glimt[0]["total_output_tokens"] == 15
    assert "| a few | 2 | " in means_table([found])
    if os.geteuid() == 0:
        assert all(each["wire"]["mean_ttft_ms"] >= 99 for each in found.vllm)
        assert wire_table([found]).count("\n") == 2


def test_a_report_has_each_server_under_what_was_measured_where() -> None:
    far = verdict_of([100, 101], [110, 111])
    text, does_agree = agreement.report(
        [("one", [verdict_of([9, 9], [9, 9])]), ("two", [far])], "H"
    )
    assert not does_agree
    assert text.startswith("H\n\nAgainst one:\n\n| load |")
    assert text.count("| a load | 2 | 7 + 128 |") == 2
    assert "* DISAGREES: a load: TTFT" in text


def test_tables_go_between_the_marks_of_a_document(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    begin, end = agreement.BEGIN, agreement.END
    file.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    agreement.record(file, "new\n")
    assert file.read_text() == f"before\n{begin}\n\nnew\n{end}\nafter\n"
    with pytest.raises(SystemExit, match="lacks the lines"):
        agreement.record(Path(__file__), "new\n")
