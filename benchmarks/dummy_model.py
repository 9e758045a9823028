"""Speed of a full-size model with random weights, through scheduler and executor: no checkpoint.

    python benchmarks/dummy_model.py                      GLM-4.5V-FP8, all 46 layers (110 GB)
    python benchmarks/dummy_model.py --layers 4           a slice of it
    python benchmarks/dummy_model.py --model 9b           GLM-4.6V-Flash's sizes
    python benchmarks/dummy_model.py --quantization none  in BF16
    python benchmarks/dummy_model.py -tp 2 [-ep]          on two GPUs
    python benchmarks/dummy_model.py --model tiny --device cpu --dtype float32   whether it runs

    python benchmarks/dummy_model.py --switch prompt_graphs=1    with what is off otherwise
    python benchmarks/dummy_model.py --profile-start      the start alone: where its time goes

Prints start-up by phase; milliseconds of a decode step by number of requests; prompt tokens each
second; and the time to the first token of one image with text, by phase. Routing is spread evenly
over the experts, as trained routers aim at; see `glimt/models/dummy.py`. `--json` keeps it all.
"""

import argparse
import copy
import cProfile
import itertools
import json
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import torch
from model_sizes import MODELS
from switches import hand_on, switch, switches_of

from glimt.arena import SharedArena
from glimt.checkpoint import read_checkpoint
from glimt.config import (
    CacheSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    Settings,
)
from glimt.engine.plan import InFlight, NewRow, RowWork, StepPlan
from glimt.processes.build import Engine, build_engine
from glimt.processes.control import EngineStart
from glimt.processes.plan import make_plan
from glimt.processes.team import end_process
from glimt.tiny.checkpoint import make_tiny_checkpoint
from glimt.wire import ImageSpan, PixelRef, SamplingParams, Submit

PATCH_BYTES = 3 * 14 * 14
PROMPTS = 16  # that wait at once, where prompt tokens each second are measured


def random_pixels() -> SharedArena:
    """The same pixels for every image; what they show costs nothing."""
    arena = SharedArena.create(1 << 25, 0)
    pixels = np.random.default_rng(0).integers(0, 256, arena.nbytes, np.uint8)
    arena.view(PixelRef(0, 0, arena.nbytes))[:] = pixels.tobytes()
    return arena


def build(
    options: argparse.Namespace, place: Callable[[EngineStart], EngineStart] = lambda start: start
) -> Engine:
    """The engine, with its phases printed. `place`: which of several copies it is."""
    switch(options.switch)
    sizes = copy.deepcopy(MODELS[options.model])
    if options.layers:
        sizes["text_config"]["num_hidden_layers"] = options.layers
    arena = random_pixels()
    with tempfile.TemporaryDirectory() as folder:
        if options.switch and options.tensor_parallel_size > 1:
            hand_on(options.switch, Path(folder))
        variant = "dense" if options.model == "9b" else "moe"
        path = make_tiny_checkpoint(Path(folder) / "sizes", variant=variant)
        settings = Settings(
            model=str(path),
            models=ModelSettings(
                load_format="dummy",
                dtype=options.dtype,
                quantization="fp8" if options.quantization == "fp8" else None,
                hf_overrides=json.dumps(sizes),
                max_model_len=options.max_model_len,
                enforce_eager=options.enforce_eager,
            ),
            cache=CacheSettings(
                max_num_seqs=max(PROMPTS, *options.requests),
                max_num_batched_tokens=options.max_num_batched_tokens,
                device=options.device,
                kv_cache_dtype=options.kv_cache_dtype,
                enable_prefix_caching=False,
            ),
            media=MediaSettings(mm_encoder_tp_mode=options.mm_encoder_tp_mode),
            parallel=ParallelSettings(
                tensor_parallel_size=options.tensor_parallel_size,
                enable_expert_parallel=options.enable_expert_parallel,
                disable_custom_all_reduce=options.disable_custom_all_reduce,
            ),
        )
        plan = make_plan(settings, read_checkpoint(path, overrides=sizes))
        # The published models' largest image; the tiny checkpoint knows smaller ones only.
        start = msgspec.structs.replace(plan.engine, arena_fds=(arena.fd,), image_max_tokens=6144)
        start = place(start)
        with _profiled(options.profile_start):
            return build_engine(start, [arena], _tell_phase, end_process)


@contextmanager
def _profiled(is_on: bool) -> Iterator[None]:
    """Print what of Python took the most time within: of Glimt with all it calls, of all alone."""
    if not is_on:
        yield
        return
    profiler = cProfile.Profile()
    profiler.enable()
    yield
    profiler.disable()
    rows = [
        (f"{Path(file).name}:{line} {name}", calls, own, below)
        for (file, line, name), (_, calls, own, below, _) in pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    ]
    for title, column in (("with what it calls", 3), ("alone", 2)):
        print(f"seconds {title}:")
        for name, calls, own, below in sorted(rows, key=lambda row: -row[column])[:32]:
            print(f"  {(own, below)[column == 3]:7.2f} s {calls:7d} x  {name[:90]}")


def _tell_phase(name: str, seconds: float, detail: str) -> None:
    print(f"  {name:<10}{seconds:7.2f} s  {detail}", flush=True)


@dataclass(frozen=True)
class Turn:
    """Milliseconds of one turn of the loop, and the plan whose result was read in it."""

    plan: StepPlan | None
    schedule_ms: float
    launch_ms: float
    wait_ms: float
    commit_ms: float

    @property
    def all_ms(self) -> float:
        return self.schedule_ms + self.launch_ms + self.wait_ms + self.commit_ms

    @property
    def is_decoding(self) -> bool:
        return self.plan is not None and all(work.num_tokens == 1 for work in self.plan.work)


class Driver:
    """Gives an engine requests and turns its loop, one step ahead as `EngineLoop` does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids = itertools.count()
        self._random = np.random.default_rng(0)
        self._vocab_size = min(engine.info.vocab_size, 100_000)

    def tokens(self, count: int) -> np.ndarray:
        """Random ids."""
        return self._random.integers(0, self._vocab_size, count).astype(np.int32)

    def add(self, count: int, new: int, images: tuple[ImageSpan, ...] = ()) -> int:
        """One request with a prompt of `count` tokens and an answer of `new`; gives its number."""
        number = next(self._ids)
        submit = Submit(
            request_id=number,
            server=0,
            token_ids=self.tokens(count).tobytes(),
            images=images,
            sampling=SamplingParams(max_tokens=new, temperature=0.8, seed=number),
        )
        for _, refusal in self.engine.scheduler.add(submit):
            raise SystemExit(f"refused: {refusal.error}")
        return number

    def plan(self) -> StepPlan | None:
        """Of the next step."""
        return self.engine.scheduler.schedule()

    def turns(self) -> Iterator[Turn]:
        """Turns until all requests are answered."""
        behind: InFlight | None = None
        while True:
            times = [time.perf_counter()]
            plan = self.plan()
            times.append(time.perf_counter())
            ahead = None if plan is None else self.engine.executor.launch(plan)
            times.append(time.perf_counter())
            if not self.engine.overlap and behind is None:
                behind, ahead = ahead, None
            result = None if behind is None else behind.result()
            times.append(time.perf_counter())
            if behind is not None and result is not None:
                if result.failed:
                    raise SystemExit(f"failed: {result.failed}")
                if not behind.plan.is_idle:
                    self.engine.scheduler.commit(behind.plan, result)
            times.append(time.perf_counter())
            yield Turn(
                None if behind is None else behind.plan,
                *(1000 * (after - before) for before, after in itertools.pairwise(times)),
            )
            behind = ahead
            if plan is None and behind is None and result is None:
                return  # after a result, what waited for its row may be planned


def decode_ms(driver: Driver, requests: int, prompt: int, new: int) -> dict[str, float]:
    """The median step in which as many requests as ever at once draw a token each."""
    for _ in range(requests):
        driver.add(prompt, new)
    took: dict[int, list[float]] = {}
    for turn in driver.turns():
        if turn.plan is not None and turn.is_decoding:
            took.setdefault(len(turn.plan.work), []).append(turn.all_ms)
    rows = max(took)
    times = took[rows][len(took[rows]) // 4 :]  # the first ones compile and record
    return {
        "requests": requests,
        "rows": rows,
        "steps": len(times),
        "median_ms": statistics.median(times),
        "p90_ms": sorted(times)[int(0.9 * len(times))],
    }


def prefill_tokens_per_s(driver: Driver, prompts: int, prompt: int) -> float:
    """Prompt tokens each second, of prompts that wait all at once; the second of two rounds."""
    for _ in range(2):
        for _ in range(prompts):
            driver.add(prompt, 1)
        took = sum(turn.all_ms for turn in driver.turns())
    return 1000 * prompts * prompt / took


def image(number: int, grid: tuple[int, int], start: int) -> ImageSpan:
    height, width = grid
    return ImageSpan(
        content_hash=number.to_bytes(32, "big"),
        start=start,
        num_tokens=height * width // 4,
        grid_h=height,
        grid_w=width,
        num_frames=1,
        pixels=PixelRef(0, 0, height * width * PATCH_BYTES),
    )


def first_token_ms(
    driver: Driver, grid: tuple[int, int], text: int, rounds: int
) -> dict[str, float]:
    """Of one new image and `text` tokens, alone: the whole, and its phases each waited for."""
    num_tokens = grid[0] * grid[1] // 4
    whole, launch, encode, prefill = [], [], [], []
    for number in range(rounds):
        driver.add(text + num_tokens, 1, (image(1 + number, grid, text // 2),))
        turns = list(driver.turns())
        whole.append(sum(turn.all_ms for turn in turns))
        launch.append(sum(turn.launch_ms for turn in turns))
    executor, info = driver.engine.executor, driver.engine.info
    pages = tuple(range(-(-(text + num_tokens) // info.page_size)))
    for number in range(rounds):
        span = image(1000 + number, grid, text // 2)
        row = NewRow(
            row=0,
            token_ids=driver.tokens(text + num_tokens),
            num_prompt_tokens=text + num_tokens,
            positions=None,
            rope_delta=0,
            images=(span,),
            sampling=SamplingParams(max_tokens=1, temperature=0.8, seed=1),
            page_ids=pages,
        )
        work = RowWork(0, 0, text + num_tokens, samples=True)
        encode.append(_timed(lambda span=span: executor.launch(StepPlan(0, encode=(span,)))))
        plan = StepPlan(1, new_rows=(row,), work=(work,))
        prefill.append(_timed(lambda plan=plan: executor.launch(plan)))
        done = StepPlan(2, freed_rows=(0,), drop_images=(span.content_hash,))
        executor.launch(done).result()
    later = slice(min(2, rounds - 1), None)
    return {
        "image_tokens": num_tokens,
        "whole_ms": statistics.median(whole[later]),
        "launch_ms": statistics.median(launch[later]),
        "encode_ms": statistics.median(encode[later]),
        "prefill_and_draw_ms": statistics.median(prefill[later]),
    }


def _timed(launch: Callable[[], InFlight]) -> float:
    started = time.perf_counter()
    launch().result()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)


def add_model_arguments(parser: argparse.ArgumentParser, *, of_ranks: bool = True) -> None:
    """Which model, on what. `of_ranks`: and of which device and how many of them."""
    parser.add_argument("--model", choices=[*MODELS], default="106b")
    parser.add_argument("--layers", type=int, default=0, help="0: all")
    parser.add_argument("--quantization", choices=["fp8", "none"], default="fp8")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-cache-dtype", choices=["auto", "fp8"], default="auto")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--max-model-len", default="16K")
    parser.add_argument("--max-num-batched-tokens", type=int, help="of a step; a GPU's: 8192")
    if of_ranks:
        parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
        parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--enable-expert-parallel", "-ep", action="store_true")
    parser.add_argument("--disable-custom-all-reduce", action="store_true")
    parser.add_argument("--mm-encoder-tp-mode", choices=["weights", "data"], default="weights")
    parser.add_argument(
        "--switch", type=switches_of, default={}, help="prompt_graphs=1,tower_stream=1 …"
    )
    parser.add_argument("--profile-start", action="store_true", help="and end after the start")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--requests", type=int, nargs="*", default=[1, 8, 32, 64, 128])
    parser.add_argument("--prompt", type=int, default=1433, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each answer")
    parser.add_argument("--grid", type=int, nargs=2, default=[64, 84], help="patches of the image")
    parser.add_argument("--rounds", type=int, default=8, help="of the time to the first token")
    parser.add_argument("--json", type=Path, help="file for the result")
    return parser.parse_args()


def device_name(options: argparse.Namespace) -> str:
    """What measurements are of."""
    return torch.cuda.get_device_name() if options.device == "cuda" else "CPU"


def model_line(engine: Engine, options: argparse.Namespace) -> str:
    """What is measured, for people."""
    info = engine.info
    return (
        f"{options.model}, {info.weights_format}, {info.dtype}, torch {torch.__version__}, "
        f"{info.tensor_parallel_size} x {device_name(options)}"
    )


def end(engine: Engine) -> NoReturn:
    """End this process, the last thing a benchmark does. Taken apart in order, a group of ranks
    may wait for ever for those that have ended, and for graphs in which they sum.
    """
    engine.close()
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Build once, then measure."""
    options = arguments()
    engine = build(options)
    print(model_line(engine, options))
    if options.profile_start:
        end(engine)
    driver = Driver(engine)
    result: dict[str, Any] = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "device": device_name(options),
        "torch": torch.__version__,
        "startup_s": engine.info.phases_s,
        "decode": [],
    }
    driver.add(64, 8)
    list(driver.turns())
    for requests in options.requests:
        step = decode_ms(driver, requests, options.prompt, options.tokens)
        result["decode"].append(step)
        rate = 1000 * step["rows"] / step["median_ms"]
        print(
            f"{step['rows']:4d} requests of {options.prompt}: decode step {step['median_ms']:8.2f} "
            f"ms (p90 {step['p90_ms']:.2f}), {rate:8.0f} tokens/s",
            flush=True,
        )
    rate = prefill_tokens_per_s(driver, PROMPTS, options.prompt)
    result["prefill_tokens_per_s"] = rate
    print(f"prompts: {rate:.0f} tokens/s", flush=True)
    first = first_token_ms(driver, tuple(options.grid), 90, options.rounds)
    result["first_token"] = first
    print(
        f"first token of an image of {first['image_tokens']} tokens and 90 of text: "
        f"{first['whole_ms']:.1f} ms, {first['launch_ms']:.1f} of them launching (alone: image "
        f"{first['encode_ms']:.1f}, prompt and draw {first['prefill_and_draw_ms']:.1f})"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    end(engine)


if __name__ == "__main__":
    main()
