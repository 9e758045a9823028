"""Joules for each token of a full-size model with random weights, by how many requests run at once.

    python benchmarks/energy.py                           GLM-4.5V-FP8, all 46 layers (110 GB)
    python benchmarks/energy.py --model 9b                GLM-4.6V-Flash's sizes
    python benchmarks/energy.py --layers 8 --requests 1 8 64

Decode steps of the engine in this process, as `dummy_model.py` makes them, between two readings of
the GPUs' own energy counters, by the reader that `glimt bench serve --gpu` uses; where NVIDIA's
package (nvidia-ml-py) is installed, its reading stands beside it. Counters are renewed some ten
times a second, so a row should last some seconds (--tokens). Needs neither a checkpoint nor a
server.
"""

import argparse
import importlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from dummy_model import Driver, add_model_arguments, build, end

from glimt.bench.events import PowerEvent
from glimt.bench.load.power import Gpus
from glimt.errors import BadSettings


@dataclass
class Meter:
    """Energy of all visible GPUs (CUDA_VISIBLE_DEVICES), by both readers."""

    gpus: Gpus
    nvml: ModuleType | None  # NVIDIA's package; None: not installed
    cards: list[Any]  # its handles of the same GPUs

    def read(self) -> tuple[float, PowerEvent, float]:
        """(seconds, our reading, their joules), when everything launched is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now_s = time.perf_counter()
        sample = self.gpus.sample(round(now_s * 1e9))
        if sample is None or sample.joules is None:
            raise SystemExit("these GPUs have no energy counters")
        return now_s, sample, self._their_joules()

    def _their_joules(self) -> float:
        nvml = self.nvml
        if nvml is None:
            return 0.0
        return sum(nvml.nvmlDeviceGetTotalEnergyConsumption(card) for card in self.cards) / 1e3


def meter() -> Meter:
    """Raises BadSettings without a GPU."""
    gpus = Gpus()
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return Meter(gpus, None, [])
    nvml.nvmlInit()
    return Meter(gpus, nvml, [_card(nvml, name) for name in gpus.names])


def _card(nvml: ModuleType, name: str) -> Any:
    """The package's handle of the GPU with this index or UUID."""
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


def decode(driver: Driver, meter: Meter, requests: int, prompt: int, new: int) -> dict[str, float]:
    """What the steps cost in which all requests draw a token each, after the first of them."""
    for _ in range(requests):
        driver.add(prompt, new)
    begun, num_steps = None, 0
    for turn in driver.turns():
        if turn.plan is None or not turn.is_decoding or len(turn.plan.work) != requests:
            continue
        if begun is None:
            begun = meter.read()
        else:
            num_steps += 1
    if begun is None or num_steps == 0:
        raise SystemExit(f"{requests} requests never ran at once; is there room for their KV?")
    return row(begun, meter.read(), requests, num_steps)


def row(
    begun: tuple[float, PowerEvent, float],
    ended: tuple[float, PowerEvent, float],
    requests: int,
    num_steps: int,
) -> dict[str, float]:
    """A row of the table, from two readings."""
    seconds = ended[0] - begun[0]
    joules = sum(ended[1].joules or ()) - sum(begun[1].joules or ())
    tokens = requests * num_steps
    return {
        "requests": requests,
        "seconds": seconds,
        "step_ms": 1e3 * seconds / num_steps,
        "watts": joules / seconds,
        "joules_per_token": joules / tokens,
        "joules_per_token_by_nvidia": (ended[2] - begun[2]) / tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=800, help="of each answer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        reader = meter()
    except BadSettings as error:
        raise SystemExit(error.message) from None
    begun = reader.read()
    time.sleep(2)
    idle = row(begun, reader.read(), 1, 1)
    print(f"before the model is there: {idle['watts']:.0f} W", flush=True)
    engine = build(options)
    driver = Driver(engine)
    decode(driver, reader, 1, options.prompt, 20)  # first uses compile
    rows = [decode(driver, reader, n, options.prompt, options.tokens) for n in options.requests]
    print("| requests | ms a step | W | J for a token | by nvidia-ml-py | seconds |")
    print("|---|---|---|---|---|---|")
    for each in rows:
        theirs = each["joules_per_token_by_nvidia"]
        print(
            f"| {each['requests']:.0f} | {each['step_ms']:.2f} | {each['watts']:.0f} "
            f"| {each['joules_per_token']:.3f} | {f'{theirs:.3f}' if theirs else '–'} "
            f"| {each['seconds']:.1f} |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"idle_watts": idle["watts"], "rows": rows}))
    end(engine)


if __name__ == "__main__":
    main()
