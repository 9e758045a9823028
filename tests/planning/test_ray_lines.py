"""What a plan for several machines says to who has a Ray cluster."""

import shlex
from dataclasses import replace

import pytest

from glimt.placement.serve_arguments import arguments_of, resources, server_settings
from glimt.planning.plan import Plan, make_plan
from glimt.planning.serve_line import ray_lines, refusals
from tests.planning.test_plan import question, read_back


@pytest.fixture(scope="module")
def of_four_machines() -> Plan:
    return make_plan(question("GLM-4.5V-FP8", 8, nodes=4, gpu="h100"), "")


def lines_of(plan: Plan, name: str) -> list[str]:
    best = next(e for e in plan.estimates if e.layout.name == name)
    chosen = replace(plan, best=best)
    assert refusals(chosen, "m", quantize=False) == []
    return [line for _, line in ray_lines(chosen, "m", quantize=False)]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("TP32", {"nnodes": 4, "distributed_executor_backend": "ray"}),
        ("TP16 x DP2", {"nnodes": 2, "data_parallel_backend": "ray", "data_parallel_size": 2}),
        ("TP4 x DP8", {"nnodes": 1, "data_parallel_backend": "ray", "data_parallel_size": 8}),
        ("DP32 + EP8", {"data_parallel_size_local": 8, "expert_parallel_scope": "machine"}),
        ("DP32 + EP", {"data_parallel_size_local": None, "expert_parallel_scope": "all"}),
        ("TP8 x DP4 + EP8", {"data_parallel_size": 4, "expert_parallel_scope": "machine"}),
    ],
)
def test_ray_is_told_how_many_copies_and_machines_and_no_addresses(
    of_four_machines: Plan, name: str, flags: dict[str, object]
) -> None:
    parallel = read_back(lines_of(of_four_machines, name)[0])["parallel"]
    assert {key: getattr(parallel, key) for key in flags} == flags
    assert parallel.master_addr is parallel.data_parallel_address is parallel.master_token is None


@pytest.mark.parametrize(
    ("name", "gpus", "copies"), [("TP4 x DP8", 8, 2), ("DP32 + EP8", 8, 8), ("TP8 x DP4", 8, 1)]
)
def test_ray_serve_gets_a_server_for_each_machine(
    of_four_machines: Plan, name: str, gpus: int, copies: int
) -> None:
    words = shlex.split(lines_of(of_four_machines, name)[-1])
    assert words[:3] == ["serve", "run", "glimt.placement.serve_app:app"]
    arguments = arguments_of(dict(word.split("=", 1) for word in words[3:]))
    settings = server_settings(arguments.command)
    assert arguments.max_replicas == 4
    assert resources(settings)["num_gpus"] == gpus
    assert settings.parallel.data_parallel_size == copies
    assert settings.parallel.enable_expert_parallel == ("EP" in name)


def test_what_ray_cannot_place_has_no_line_for_it(of_four_machines: Plan) -> None:
    for name in ("TP16 x DP2", "DP32 + EP"):  # no server on one machine
        (only,) = lines_of(of_four_machines, name)
        assert only.startswith("glimt serve")
    assert ray_lines(make_plan(question(), ""), "m", quantize=False) == []
