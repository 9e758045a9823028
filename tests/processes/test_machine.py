"""Machine: what a sleeping engine gives back, and what it is after waking."""

import copy
import gc
import gzip
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glimt.engine.plan import RowWork, StepPlan
from glimt.errors import EngineAsleep, EngineFailed, GlimtError, InvalidRequest, Unsupported
from glimt.models.glm4v import Glm4v
from glimt.processes.control import ProfilerSettings
from glimt.processes.machine import Machine, give_back, settle
from glimt.processes.profiling import Profiler
from glimt.runner.executor import ModelExecutor
from tests.support.tiny_model import Album, make_ask, make_executor, new_row, tiny_model

KIND = "glm4v_moe"
ALBUM = Album()
PROFILE = ProfilerSettings(
    folder="",
    with_stack=False,
    with_flops=False,
    record_shapes=False,
    with_memory=False,
    gzip=True,
)


@pytest.fixture(autouse=True)
def _the_rest_of_the_process_is_hidden_from_collections() -> Iterator[None]:
    """Each of these tests gives memory back, and then nothing is: the next would look at all."""
    yield
    gc.freeze()


class Made:
    """A machine over a tiny model, and weak references to all that it was given."""

    def __init__(self, device: str = "cpu", settings: ProfilerSettings | None = None) -> None:
        self.device = torch.device(device)
        self.models: list[weakref.ref[Glm4v]] = []
        self.executors: list[weakref.ref[ModelExecutor]] = []
        self.error: Exception | None = None
        self.machine = Machine(
            self.load(),
            make=self.make,
            load=self.load,
            device=self.device,
            profiler=Profiler(settings),
        )

    def load(self) -> Glm4v:
        model = copy.deepcopy(tiny_model(KIND, self.device))
        self.models.append(weakref.ref(model))
        return model

    def make(self, model: Glm4v) -> ModelExecutor:
        if self.error is not None:
            raise self.error
        executor = make_executor(model, ALBUM)
        self.executors.append(weakref.ref(executor))
        return executor

    def token(self) -> int:
        """What a small prompt draws."""
        ask = make_ask(ALBUM, "text", seed=1)
        count = len(ask.token_ids)
        row = new_row(ask, 0, tuple(range(-(-count // 4))))
        plan = StepPlan(1, (), (row,), work=(RowWork(0, 0, count, samples=True),))
        with torch.inference_mode():
            return self.machine.launch(plan).result().token_ids[0]


def check_sleep(device: str) -> None:
    made = Made(device)
    expected = made.token()
    for level in (1, 2):
        made.machine.sleep(level)
        assert made.machine.sleep_level == level
        assert made.executors[-1]() is None
        assert (made.models[-1]() is None) is (level == 2)
        with pytest.raises(EngineAsleep):
            made.token()
        made.machine.sleep(1)
        assert made.machine.sleep_level == level
        made.machine.wake()
        made.machine.wake()
        assert (made.machine.sleep_level, made.token()) == (0, expected)
    assert (len(made.models), len(made.executors)) == (2, 3)


def test_a_sleeping_machine_lets_its_memory_go_and_wakes_as_it_was() -> None:
    check_sleep("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_is_left_on_the_device() -> None:
    before = torch.cuda.memory_allocated()
    made = Made("cuda")
    expected = made.token()
    for level in (1, 2):
        made.machine.sleep(level)
        assert torch.cuda.memory_allocated() - before < 64 * 2**10
        made.machine.wake()
        assert made.token() == expected


def test_from_level_1_it_may_sleep_deeper() -> None:
    made = Made()
    made.machine.sleep(1)
    made.machine.sleep(2)
    assert made.models[0]() is None
    made.machine.wake()
    assert made.machine.sleep_level == 0


@pytest.mark.parametrize("level", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_without_memory_to_wake_it_sleeps_on_and_may_be_woken_later(level: int) -> None:
    made = Made()
    expected = made.token()
    made.machine.sleep(level)
    made.error = torch.OutOfMemoryError("no")
    with pytest.raises(EngineFailed, match="not enough free memory"):
        made.machine.wake()
    assert made.machine.sleep_level == level
    made.error = None
    made.machine.wake()
    assert made.token() == expected


def profiler(folder: Path, **changes: Any) -> Profiler:
    values = {**{name: getattr(PROFILE, name) for name in PROFILE.__struct_fields__}, **changes}
    return Profiler(ProfilerSettings(**{**values, "folder": str(folder)}))


@pytest.mark.parametrize("packed", [True, False])
def test_a_profile_is_a_trace_of_what_was_computed(tmp_path: Path, packed: bool) -> None:
    one = profiler(tmp_path / "new", gzip=packed)
    assert one.start() == str(tmp_path / "new")
    torch.ones(4, 4) @ torch.ones(4, 4)
    file = Path(one.stop()())
    assert file.parent == tmp_path / "new"
    text = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
    assert "aten::matmul" in {event.get("name") for event in json.loads(text)["traceEvents"]}
    assert not one.is_on


def test_profiles_begin_and_end_in_turn(tmp_path: Path) -> None:
    one = profiler(tmp_path)
    with pytest.raises(InvalidRequest, match="no profile is being recorded"):
        one.stop()
    one.start()
    with pytest.raises(InvalidRequest, match="a profile is being recorded"):
        one.start()
    one.stop()
    with pytest.raises(Unsupported, match="--profiler-config"):
        Profiler(None).start()
    (tmp_path / "file").touch()
    with pytest.raises(GlimtError, match="no profile into"):
        profiler(tmp_path / "file").start()


def test_what_a_start_leaves_is_hidden_from_collections_until_memory_is_given_back() -> None:
    class Node:
        def __init__(self) -> None:
            self.itself = self

    node = Node()
    gone = weakref.ref(node)
    settle()
    try:
        assert gc.get_freeze_count() > 0
        del node
        gc.collect()
        assert gone() is not None, "a cycle that was hidden"
        give_back(torch.device("cpu"))
        assert gone() is None
    finally:
        gc.unfreeze()
