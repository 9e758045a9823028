"""What Ray's machines are told is what a user would have typed there."""

from dataclasses import replace
from pathlib import Path

import pytest

from glimt.config import MediaSettings, ParallelSettings, ServerSettings, Settings
from glimt.config_check import check
from glimt.copies import copies_of
from glimt.errors import BadSettings
from glimt.placement.layout import Wish
from glimt.placement.orders import (
    Address,
    Head,
    decode,
    encode,
    of_place,
    of_this_machine,
    wants_ray,
    wish_of,
)

RANKS = Address("10.0.0.1", 4712)
HEAD = Head(Address("10.0.0.1", 4711), RANKS, "sixteen letters or more")


def wished(**parallel: object) -> Settings:
    return Settings(
        model="org/model",
        parallel=ParallelSettings(**parallel),  # type: ignore[arg-type]
        media=MediaSettings(allowed_local_media_path="/pictures"),
        server=ServerSettings(api_key=["secret"], admin_key_file="/root/key", log_json=True),
    )


SPREAD = wished(tensor_parallel_size=8, nnodes=2, distributed_executor_backend="ray")
COPIES = wished(tensor_parallel_size=4, data_parallel_size=3, data_parallel_backend="ray")

LARGE = wished(tensor_parallel_size=8, nnodes=2, data_parallel_size=2, data_parallel_backend="ray")


def test_ray_is_asked_for_by_either_flag() -> None:
    assert [wants_ray(each.parallel) for each in (SPREAD, COPIES, wished())] == [True, True, False]


def test_what_is_to_be_placed() -> None:
    assert wish_of(SPREAD, "GPU") == Wish("GPU", 1, 2, 4, spreads=True)
    assert wish_of(COPIES, "CPU") == Wish("CPU", 3, 1, 4, spreads=True)
    stay = wished(data_parallel_size=2, distributed_executor_backend="ray")
    assert not wish_of(stay, "GPU").spreads


def test_ranks_elsewhere_are_nodes_and_nothing_of_them_is_rays_any_more() -> None:
    both = of_this_machine(SPREAD, HEAD, 1), of_place(SPREAD, HEAD, 0, 1, RANKS)
    for rank, settings in enumerate(both):
        parallel = settings.parallel
        assert (parallel.nnodes, parallel.node_rank) == (2, rank)
        assert (parallel.master_addr, parallel.master_port) == RANKS
        assert parallel.master_token == HEAD.token
        assert not wants_ray(parallel)
        assert check(settings) is not None


def test_copies_elsewhere_are_headless_and_numbered_behind_those_here() -> None:
    here, there = of_this_machine(COPIES, HEAD, 2).parallel, of_place(COPIES, HEAD, 2).parallel
    assert (here.data_parallel_size_local, there.data_parallel_size_local) == (2, 1)
    assert there.data_parallel_start_rank == 2
    assert (here.headless, there.headless) == (False, True)
    for parallel in (here, there):
        assert (parallel.data_parallel_address, parallel.data_parallel_rpc_port) == (
            "10.0.0.1",
            4711,
        )
        assert parallel.data_parallel_size == 3
        assert not wants_ray(parallel)


def test_parts_of_copies_elsewhere_are_told_both_where_ranks_and_where_copies_meet() -> None:
    """As docs/parallelism.md has the four commands of two copies of two machines each."""
    theirs = Address("10.0.0.3", 555)
    places = [
        of_this_machine(LARGE, HEAD, 1),
        of_place(LARGE, HEAD, 0, 1, RANKS),
        of_place(LARGE, HEAD, 1, 0, theirs),
        of_place(LARGE, HEAD, 1, 1, theirs),
    ]
    parallels = [settings.parallel for settings in places]
    assert [p.node_rank for p in parallels] == [0, 1, 0, 1]
    assert [p.headless for p in parallels] == [False, True, True, True]
    meet = [(p.master_addr, p.master_port) for p in parallels]
    assert meet == [RANKS, RANKS, theirs, theirs]
    assert {(p.data_parallel_address, p.data_parallel_rpc_port) for p in parallels} == {HEAD.copies}
    copies = [copies_of(p) for p in parallels]
    assert [c.role for c in copies] == ["head", "ranks", "node", "ranks"]
    assert [list(c.local) for c in copies] == [[0], [0], [1], [1]]
    for settings in places:
        assert check(settings) is not None


def test_copies_that_are_to_be_together_are_one_place() -> None:
    together = wished(
        data_parallel_size=4,
        data_parallel_size_local=2,
        data_parallel_backend="ray",
        enable_expert_parallel=True,
    )
    assert wish_of(together, "GPU") == Wish("GPU", 4, 1, 1, spreads=True, num_together=2)
    here, there = of_this_machine(together, HEAD, 2), of_place(together, HEAD, 2)
    assert list(copies_of(here.parallel).local) == [0, 1]
    assert list(copies_of(there.parallel).local) == [2, 3]
    for settings in (together, here, there):
        assert check(settings) is not None


def test_copies_that_are_all_here_need_to_meet_nobody() -> None:
    parallel = of_this_machine(COPIES, HEAD, 3).parallel
    assert parallel == replace(COPIES.parallel, data_parallel_backend="mp")


def test_keys_stay_where_http_is() -> None:
    told = encode(of_place(COPIES, HEAD, 1)) + encode(of_place(SPREAD, HEAD, 0, 1, RANKS))
    assert b"secret" not in told
    assert b"/root/key" not in told
    assert b"/pictures" not in told
    assert of_this_machine(COPIES, HEAD, 2).server == COPIES.server


def test_a_folder_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert of_place(replace(COPIES, model="model"), HEAD, 1).model == str(tmp_path / "model")
    assert of_place(COPIES, HEAD, 1).model == "org/model"


def test_settings_survive_the_way() -> None:
    assert decode(encode(COPIES)) == COPIES


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"headless": True}, "--headless: Ray decides"),
        ({"data_parallel_rank": 0}, "--data-parallel-rank: Ray decides"),
        ({"data_parallel_size_local": 1}, "--data-parallel-size-local 1: Ray decides"),
        (
            {
                "data_parallel_backend": "ray",
                "data_parallel_size": 4,
                "data_parallel_size_local": 3,
            },
            "--data-parallel-size 4 is no multiple of it",
        ),
        (
            {
                "data_parallel_backend": "ray",
                "tensor_parallel_size": 2,
                "data_parallel_size": 2,
                "data_parallel_size_local": 1,
                "nnodes": 2,
            },
            "--data-parallel-size-local 1: a copy takes --nnodes 2 machines",
        ),
        ({"tensor_parallel_size": 3, "nnodes": 2}, "must be a multiple of --nnodes 2"),
        (
            {"tensor_parallel_size": 2, "nnodes": 2, "data_parallel_size": 2},
            "--data-parallel-size 2: copies of --nnodes 2 machines each",
        ),
        ({"master_token": "short"}, "--master-token: must have 16 characters"),
    ],
)
def test_flags_that_say_what_ray_decides_are_refused(flags: dict[str, object], said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        check(wished(distributed_executor_backend="ray", **flags))


def test_ray_alone_needs_no_addresses_and_no_token() -> None:
    assert check(SPREAD) is not None
    assert check(COPIES) is not None
