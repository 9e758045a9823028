"""The tuner of the kernels' tiles: what it tries, in which order, and the table that it writes.

Only a GPU can time a tile; here a formula does. All else is the real thing, compiling included.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton has packages for Linux only")

from benchmarks.kernels import candidates, jobs, tune
from benchmarks.kernels.compilers import Compilers, NoInputs
from glimt.kernels import tiles
from glimt.kernels.reference import QuantizedRows
from glimt.kernels.tiles import ExpertTile, LinearTile

CPU = torch.device("cpu")
QKV, OUT = "fp8_linear 14336x4096", "fp8_linear 4096x12288"
BEST = LinearTile(8, 512, 1, 1, 3, "fma")


@pytest.fixture(scope="module")
def planned() -> list[jobs.Job]:
    """All, with inputs that nobody reads."""
    found = jobs.all_jobs(None, None, None, NoInputs())
    return [replace(job, make=lambda n: ()) for job in found]


def timed(job: jobs.Job, tile: Any, sets: list[Any], rounds: int) -> float:
    """One of QKV's tiles is fast, everything else takes as long as the rule's."""
    if tile == job.rule or (job.name == f"{QKV} 1" and tile == BEST):
        return 17.4 if tile == job.rule else 14.0
    if job.product == "down":
        raise ValueError("too much shared memory")
    return 17.3


def tuner(file: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> tune.Tuner:
    monkeypatch.setattr(tiles, "gpu_name", lambda: "a GPU")
    made = tune.Tuner(file, CPU, timer=timed, **given)
    monkeypatch.setattr(made, "_is_right", lambda *given: True)
    return made


def test_what_is_worth_most_comes_first(planned: list[jobs.Job]) -> None:
    names = [job.name for job in planned]
    assert names[:4] == [f"{QKV} 1", f"{OUT} 1", "gate_up 1408x4096 1", "down 4096x1408 1"]
    assert names[4:6] == [f"{QKV} 16", f"{OUT} 16"]
    assert names.index("fp8_linear 7168x4096 1") > names.index(f"{OUT} 32")  # two GPUs
    for size in ("4096x6144", "3584x4096", "4096x3072", "4608x4096", "27392x4096", "4096x13696"):
        assert {f"fp8_linear {size} {rows}" for rows in (1, 16, 32, 64)} <= set(names)
    for size in ("704x4096", "352x4096"):
        assert {f"gate_up {size} {rows}" for rows in (1, 16, 32, 64)} <= set(names)
    assert len(set(names)) == len(names)
    assert sum(len(job.tiles) for job in planned) < 900  # 0.6 s each, on twelve cores: a minute


def test_only_tiles_that_could_be_as_fast_as_memory_are_tried(planned: list[jobs.Job]) -> None:
    qkv = planned[0]
    assert {tile.way for tile in qkv.candidates} == {"fma", "tma", "copy"}
    for tile in qkv.candidates:
        load = candidates.linear_load(tile, 14336, 4096, 1)
        assert load.resident >= 1
        assert load.in_flight >= candidates.LEAST_IN_FLIGHT
    assert all(tile.parts == 1 for tile in qkv.candidates)  # a launch that adds them costs more
    assert {tile.way for tile in planned[1].candidates} == {"fma", "tma", "copy"}
    assert any(tile.parts > 1 for tile in planned[1].candidates)  # of O, which the norm adds
    assert all(tile.way != "fma" for job in planned if job.rows > 1
               for tile in job.candidates if isinstance(tile, LinearTile))  # fmt: skip


@pytest.mark.parametrize(
    ("shared", "registers", "warps", "held"),
    [(61440, 56, 4, 3), (0, 64, 1, 32), (0, 80, 4, 6), (240_000, 32, 4, 0)],
)
def test_a_processor_holds_what_its_memories_do(
    shared: int, registers: int, warps: int, held: int
) -> None:
    assert candidates.resident(shared, registers, warps) == held


def test_the_fastest_tile_is_what_the_kernels_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, planned: list[jobs.Job]
) -> None:
    file = tmp_path / "tiles.json"
    made = tuner(file, monkeypatch)
    table = made.run(planned[:4])["a GPU"]
    assert json.loads(file.read_text()) == {"a GPU": table}
    assert table["fp8_linear"] == {"14336x4096": {"1": BEST._asdict()}}  # the others gain nothing
    line = table["measured"][f"{QKV} 1"]
    assert (line["rule_us"], line["best_us"], line["best"]) == (17.4, 14.0, BEST._asdict())
    assert table["measured"]["down 4096x1408 1"]["tried"] == 1
    assert "norm" in table["measured"][f"{OUT} 1"]["within"]
    assert f"{QKV} 1" in made.report(planned)
    monkeypatch.setattr(tiles, "_table", lambda: json.loads(file.read_text()))
    assert tiles.linear_tile(14336, 4096, 1) == BEST
    assert tiles.linear_tile(14336, 4096, 2) == tiles.linear_rule(14336, 4096)
    monkeypatch.setattr(tiles, "TUNED", False)
    assert tiles.linear_tile(14336, 4096, 1) == tiles.linear_rule(14336, 4096)


def shipped() -> dict[str, Any]:
    part: dict[str, Any] = json.loads(Path(tiles.__file__).with_name("tiles.json").read_text())
    return part["NVIDIA H200"]


@pytest.mark.parametrize("product", ["fp8_linear", "gate_up", "down"])
def test_the_shipped_table_has_the_fastest_of_what_was_measured(product: str) -> None:
    form = LinearTile if product == "fp8_linear" else ExpertTile
    for size, by_rows in shipped()[product].items():
        for rows, found in by_rows.items():
            line = shipped()["measured"][f"{product} {size} {rows}"]
            assert line["best"] == found
            assert line["best_us"] < (1 - tune.LEAST_GAIN) * line["rule_us"] + 0.01  # rounded
            assert set(found) == set(form._fields)
            assert found.get("way") in (None, "copy", "tma", *(["fma"] if rows == "1" else []))


def test_the_shipped_table_serves_h200s_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(rows: int) -> tuple[LinearTile, ExpertTile, ExpertTile]:
        products = tiles.gate_up_tile(1408, 4096, rows), tiles.down_tile(4096, 352, rows)
        return tiles.linear_tile(14336, 4096, rows), *products

    def rules(rows: int) -> tuple[LinearTile, ExpertTile, ExpertTile]:
        return tiles.linear_rule(14336, 4096), tiles.gate_up_rule(rows), tiles.down_rule(rows)

    for name in ("", "NVIDIA H100 80GB HBM3"):
        monkeypatch.setattr(tiles, "gpu_name", lambda name=name: name)
        assert [looked_up(rows) for rows in (1, 3, 8, 64)] == [rules(n) for n in (1, 3, 8, 64)]
    monkeypatch.setattr(tiles, "gpu_name", lambda: "NVIDIA H200")
    assert looked_up(1)[0].way == "fma"
    assert looked_up(2)[0] == looked_up(16)[0] != rules(2)[0]
    # Experts of up to 4 tokens have a rule of their own, which was not measured against the table.
    assert [looked_up(rows)[1:] for rows in (2, 4)] == [rules(rows)[1:] for rows in (2, 4)]
    assert looked_up(5)[1:] == looked_up(16)[1:]
    assert all(got != rule for got, rule in zip(looked_up(16), rules(16), strict=True))


def test_nothing_is_read_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "gpu_name", lambda: "")
    monkeypatch.setattr(tiles, "_table", lambda: pytest.fail("read"))
    assert tiles.linear_tile(14336, 4096, 1) == tiles.linear_rule(14336, 4096)


def test_a_tile_with_other_numbers_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, planned: list[jobs.Job]
) -> None:
    made = tuner(tmp_path / "tiles.json", monkeypatch)
    monkeypatch.setattr(made, "_is_right", lambda *given: False)
    table = made.run(planned[:1])["a GPU"]
    assert "fp8_linear" not in table
    assert table["measured"][f"{QKV} 1"]["best"] == planned[0].rule._asdict()


def test_tuning_is_taken_up_where_it_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, planned: list[jobs.Job]
) -> None:
    file = tmp_path / "tiles.json"
    tuner(file, monkeypatch).run(planned[:1])
    stopped = tuner(file, monkeypatch, seconds=-1.0).run(planned)["a GPU"]
    assert list(stopped["measured"]) == [f"{QKV} 1"]
    seen: list[str] = []
    again = tuner(file, monkeypatch)
    monkeypatch.setattr(again, "_try", lambda job: seen.append(job.name))
    again.run(planned[:3])
    assert seen == [job.name for job in planned[1:3]]


def test_outputs_of_two_tiles_are_compared_as_numbers() -> None:
    job = jobs.Job(
        "fp8_linear", "2x2", 1, 1, [], lambda tile: lambda x: x * tile, lambda n: (), 1, 4
    )
    made, x = tune.Tuner(None, CPU), torch.ones(2, 2)
    assert made._is_right(job, 1.01, (x,))
    assert not made._is_right(job, 1.1, (x,))
    assert not made._is_right(job, torch.nan, (x,))
    rows = QuantizedRows(x, x, torch.ones(2, 1))
    assert [tuple(part.shape) for part in tune._outputs((rows, x))] == [
        (2, 2),
        (2, 2),
        (2, 1),
        (2, 2),
    ]


@pytest.mark.slow
def test_other_processes_compile_for_hopper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    wanted = ["--models", "106b:1", "--rows", "1", "--quick", "--only", f"{OUT} 1"]
    command = ["--tune", str(tmp_path / "tiles.json"), "--device", "cpu", *wanted]
    with Compilers([*command, "--compilers", "8"], 2) as compilers:  # a quarter of the tiles
        assert not compilers.wait_for(f"{OUT} 1", 0.01)
        assert compilers.wait_for(f"{OUT} 1", 100)
    assert len(list(tmp_path.glob("*/linear_kernel.cubin"))) >= 2
    assert len(list(tmp_path.glob("*/gemv_kernel.cubin"))) >= 1


def test_nobody_waits_for_compilers_that_have_ended(tmp_path: Path) -> None:
    with Compilers(["--tune", str(tmp_path / "t"), "--no-such-option"], 1) as compilers:
        assert compilers.wait_for("any", float("inf"))
