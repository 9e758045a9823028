"""What Ray's machines are told is what a user would have typed there."""

from dataclasses import replace
from pathlib import Path

import pytest

from glimt.config import MediaSettings, ParallelSettings, ServerSettings, Settings
from glimt.config_check import check
from glimt.errors import BadSettings
from glimt.placement.layout import Wish
from glimt.placement.orders import (
    Head,
    decode,
    encode,
    of_copy,
    of_node,
    of_this_machine,
    wants_ray,
    wish_of,
)

HEAD = Head("10.0.0.1", 4711, "sixteen letters or more")


def wished(**parallel: object) -> Settings:
    return Settings(
        model="org/model",
        parallel=ParallelSettings(**parallel),  # type: ignore[arg-type]
        media=MediaSettings(allowed_local_media_path="/pictures"),
        server=ServerSettings(api_key=["secret"], admin_key_file="/root/key", log_json=True),
    )


SPREAD = wished(tensor_parallel_size=8, nnodes=2, distributed_executor_backend="ray")
COPIES = wished(tensor_parallel_size=4, data_parallel_size=3, data_parallel_backend="ray")


def test_ray_is_asked_for_by_either_flag() -> None:
    assert [wants_ray(each.parallel) for each in (SPREAD, COPIES, wished())] == [True, True, False]


def test_what_is_to_be_placed() -> None:
    assert wish_of(SPREAD, "GPU") == Wish("GPU", 1, 2, 4, spreads=True)
    assert wish_of(COPIES, "CPU") == Wish("CPU", 3, 1, 4, spreads=True)
    stay = wished(data_parallel_size=2, distributed_executor_backend="ray")
    assert not wish_of(stay, "GPU").spreads


def test_ranks_elsewhere_are_nodes_and_nothing_of_them_is_rays_any_more() -> None:
    for rank, settings in enumerate((of_this_machine(SPREAD, HEAD, 1), of_node(SPREAD, HEAD, 1))):
        parallel = settings.parallel
        assert (parallel.nnodes, parallel.node_rank) == (2, rank)
        assert (parallel.master_addr, parallel.master_port) == ("10.0.0.1", 4711)
        assert parallel.master_token == HEAD.token
        assert not wants_ray(parallel)
        assert check(settings) is not None


def test_copies_elsewhere_are_headless_and_numbered_behind_those_here() -> None:
    here, there = of_this_machine(COPIES, HEAD, 2).parallel, of_copy(COPIES, HEAD, 2).parallel
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


def test_copies_that_are_all_here_need_to_meet_nobody() -> None:
    parallel = of_this_machine(COPIES, HEAD, 3).parallel
    assert parallel == replace(COPIES.parallel, data_parallel_backend="mp")


def test_keys_stay_where_http_is() -> None:
    told = encode(of_copy(COPIES, HEAD, 1)) + encode(of_node(SPREAD, HEAD, 1))
    assert b"secret" not in told
    assert b"/root/key" not in told
    assert b"/pictures" not in told
    assert of_this_machine(COPIES, HEAD, 2).server == COPIES.server


def test_a_folder_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert of_copy(replace(COPIES, model="model"), HEAD, 1).model == str(tmp_path / "model")
    assert of_copy(COPIES, HEAD, 1).model == "org/model"


def test_settings_survive_the_way() -> None:
    assert decode(encode(COPIES)) == COPIES


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"headless": True}, "--headless: Ray decides"),
        ({"data_parallel_rank": 0}, "--data-parallel-rank: Ray decides"),
        ({"data_parallel_size_local": 1}, "--data-parallel-size-local: Ray decides"),
        ({"tensor_parallel_size": 3, "nnodes": 2}, "must be a multiple of --nnodes 2"),
        (
            {"tensor_parallel_size": 2, "nnodes": 2, "data_parallel_size": 2},
            "--data-parallel-size 2: with --nnodes",
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
