"""How many servers the reports of all servers ask for."""

from types import SimpleNamespace

import pytest

from glimt.placement.scaling import wanted_servers, work_of


def wanted(*works: float, now: int = 1) -> int:
    reports = {"work": dict(enumerate(works))} if works else {}
    context = SimpleNamespace(aggregated_metrics=reports, target_num_replicas=now)
    return wanted_servers(context)[0]


def test_idle_servers_are_one_too_many_each_but_the_last() -> None:
    assert wanted(0.0) == 1
    assert wanted(0.0, 0.0, 0.0) == 1


def test_a_queue_of_the_target_is_one_more_server() -> None:
    full_with_queue = work_of(queued_tokens=40_000, usage=0.8, target_tokens=40_000)
    assert full_with_queue == pytest.approx(2.0)
    assert wanted(full_with_queue) == 2
    assert wanted(work_of(200_000, 1.0, 40_000)) == 7


def test_servers_that_could_hold_each_others_work_are_joined_only_with_room_to_spare() -> None:
    assert wanted(work_of(0, 0.3, 1), work_of(0, 0.3, 1)) == 1
    assert wanted(work_of(0, 0.5, 1), work_of(0, 0.5, 1)) == 2


def test_a_full_server_without_a_queue_already_asks_for_another() -> None:
    assert wanted(work_of(0, 1.0, 40_000)) == 2


def test_without_reports_nothing_changes() -> None:
    assert wanted(now=3) == 3
    silent = SimpleNamespace(aggregated_metrics=None, target_num_replicas=2)
    assert wanted_servers(silent)[0] == 2
