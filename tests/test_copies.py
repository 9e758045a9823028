"""Which copies run where, from the flags as users of vLLM give them."""

from dataclasses import replace

import pytest

from glimt.config import ParallelSettings
from glimt.copies import Copies, copies_of, expert_copies, notes, problems

MEETING = {"address": "10.0.0.1", "token": "a token of sixteen or more"}


def flags(size: int, **others: object) -> ParallelSettings:
    names = {
        "token": "master_token",
        **{name: name for name in ("headless", "nnodes", "node_rank")},
    }
    given = {names.get(name, f"data_parallel_{name}"): value for name, value in others.items()}
    return ParallelSettings(data_parallel_size=size, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        (flags(4), Copies("all", 4, 0, 4)),
        (flags(4, size_local=4), Copies("all", 4, 0, 4)),
        (flags(4, rank=3), Copies("external", 4, 3, 1)),
        (flags(4, rank=3, nnodes=2), Copies("external", 4, 3, 1)),
        (flags(4, rank=3, nnodes=2, headless=True), Copies("external", 4, 3, 1)),
        (flags(4, external_lb=True, rank=0), Copies("external", 4, 0, 1)),
        (flags(4, external_lb=True, start_rank=2), Copies("external", 4, 2, 1)),
        (flags(4, hybrid_lb=True, size_local=2), Copies("hybrid", 4, 0, 2)),
        (flags(4, hybrid_lb=True, size_local=2, start_rank=2), Copies("hybrid", 4, 2, 2)),
        (flags(4, size_local=2, start_rank=2), Copies("hybrid", 4, 2, 2)),
        (flags(4, hybrid_lb=True, size_local=1, start_rank=2), Copies("external", 4, 2, 1)),
        (flags(4, hybrid_lb=True, size_local=4), Copies("all", 4, 0, 4)),
        (flags(4, size_local=2, **MEETING), Copies("head", 4, 0, 2)),
        (flags(4, size_local=0, rpc_port=1234, **MEETING), Copies("head", 4, 0, 0)),
        (flags(4, headless=True, **MEETING), Copies("node", 4, 0, 4)),
        (flags(4, headless=True, start_rank=2, **MEETING), Copies("node", 4, 2, 2)),
        (flags(4, headless=True, start_rank=2, size_local=1, **MEETING), Copies("node", 4, 2, 1)),
        (flags(4, nnodes=2, size_local=1, **MEETING), Copies("head", 4, 0, 1)),
        (
            flags(4, nnodes=2, size_local=1, headless=True, start_rank=3, **MEETING),
            Copies("node", 4, 3, 1),
        ),
        (
            flags(4, nnodes=2, size_local=1, headless=True, start_rank=3, node_rank=1, **MEETING),
            Copies("ranks", 4, 3, 1),
        ),
        (flags(1, nnodes=2, node_rank=1, headless=True), Copies("ranks", 1, 0, 1)),
    ],
)
def test_flags_say_which_copies_run_here(parallel: ParallelSettings, expected: Copies) -> None:
    assert not list(problems(parallel))
    assert copies_of(parallel) == expected


@pytest.mark.parametrize(
    ("parallel", "named"),
    [
        (flags(0), "--data-parallel-size 0: must be 1 to"),
        (flags(10_000), "--data-parallel-size 10000: must be 1 to"),
        (flags(2, rank=2), "--data-parallel-rank 2: with --data-parallel-size 2, 0 to 1"),
        (flags(2, rank=-1), "--data-parallel-rank -1"),
        (flags(4, rank=1, size_local=2), "--data-parallel-size-local 2 must be 1"),
        (flags(4, rank=1, start_rank=2), "differ"),
        (flags(4, rank=1, headless=True), "leave out --headless"),
        (flags(4, external_lb=True), "--data-parallel-external-lb needs --data-parallel-rank"),
        (flags(4, hybrid_lb=True), "--data-parallel-hybrid-lb needs --data-parallel-size-local"),
        (flags(4, hybrid_lb=True, size_local=2, rank=2), "one or the other"),
        (flags(4, hybrid_lb=True, size_local=2, headless=True), "leave out --headless"),
        (flags(4, hybrid_lb=True, size_local=3, start_rank=2), "--data-parallel-size-local 3"),
        (flags(4, hybrid_lb=True, size_local=0), "--data-parallel-size-local 0"),
        (flags(4, size_local=2, start_rank=4), "--data-parallel-start-rank 4"),
        (flags(4, start_rank=2), "--data-parallel-start-rank 2 needs --data-parallel-size-local"),
        (flags(4, size_local=5), "--data-parallel-size-local 5"),
        (flags(4, size_local=-1, **MEETING), "--data-parallel-size-local -1"),
        (flags(4, size_local=2), "needs --data-parallel-address"),
        (flags(4, size_local=2, address="10.0.0.1"), "--master-token of 16 characters or more"),
        (flags(4, size_local=2, **{**MEETING, "token": "short"}), "--master-token of 16"),
        (flags(4, size_local=2, **{**MEETING, "address": "0.0.0.0"}), "name the address"),
        (flags(4, size_local=2, rpc_port=0, **MEETING), "--data-parallel-rpc-port 0"),
        (flags(4, headless=True), "--headless needs --data-parallel-address"),
        (flags(1, headless=True, nnodes=2), "or leave it out: HTTP here"),
        (flags(2, size_local=0, nnodes=2, **MEETING), "--data-parallel-size-local 0"),
        (flags(4, headless=True, size_local=0, **MEETING), "--data-parallel-size-local 0"),
        (flags(4, headless=True, start_rank=3, size_local=2, **MEETING), "and --data-parallel-st"),
    ],
)
def test_what_does_not_fit_together_is_named(parallel: ParallelSettings, named: str) -> None:
    found = list(problems(parallel))
    assert any(named in problem for problem in found), found


def test_the_head_asks_for_the_copies_that_it_has_not() -> None:
    assert copies_of(flags(4, size_local=1, **MEETING)).far == range(1, 4)
    assert not copies_of(flags(4, headless=True, start_rank=1, **MEETING)).far
    assert not copies_of(flags(4)).far


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        (flags(4, size_local=2, **MEETING), range(4)),
        (flags(4, size_local=0, **MEETING), range(4)),
        (flags(4, headless=True, start_rank=2, **MEETING), range(4)),
        (flags(4), range(4)),
        (flags(4, rank=3), range(3, 4)),
        (flags(4, rank=3, **MEETING), range(4)),
        (flags(4, size_local=2, start_rank=2), range(2, 4)),
        (flags(4, size_local=2, start_rank=2, **MEETING), range(4)),
        (flags(4, nnodes=2, size_local=1, **MEETING), range(1)),
        (flags(4, nnodes=2, size_local=1, headless=True, start_rank=3, **MEETING), range(3, 4)),
    ],
)
def test_copies_share_experts_with_those_that_they_can_speak_with(
    parallel: ParallelSettings, expected: range
) -> None:
    spread = replace(parallel, enable_expert_parallel=True)
    assert not list(problems(spread))
    assert expert_copies(spread) == expected
    here = replace(spread, expert_parallel_scope="machine")
    assert set(expert_copies(here)) <= set(copies_of(here).local)
    assert len(expert_copies(parallel)) <= 1


def test_servers_that_share_experts_prove_that_they_may() -> None:
    hybrid = replace(flags(4, size_local=2, hybrid_lb=True, **MEETING), enable_expert_parallel=True)
    assert any("all copies of all servers share them" in note for note in notes(hybrid))
    (problem,) = problems(replace(hybrid, master_token=None))
    assert problem.startswith("--enable-expert-parallel with --data-parallel-address needs a --mas")
    (problem,) = problems(replace(hybrid, data_parallel_rpc_port=65534))
    assert "must be 1 to 65533 (the two ports after it" in problem
    alone = replace(hybrid, data_parallel_address=None, master_token=None)
    assert any("on this machine only" in note for note in notes(alone))


def test_without_http_there_are_no_servers() -> None:
    parallel = replace(flags(4, headless=True, **MEETING), api_server_count=2)
    (problem,) = problems(parallel)
    assert problem.startswith("--api-server-count 2: with --headless")


def test_addresses_that_nobody_uses_are_noted() -> None:
    parallel = flags(4, size_local=2, start_rank=2, address="10.0.0.1", rpc_port=29550)
    first, *others = notes(parallel)
    assert first.startswith("copies 2, 3 of 4, on the first visible GPUs")
    assert [note.partition(" ")[0] for note in others] == [
        "--data-parallel-address",
        "--data-parallel-rpc-port",
    ]
