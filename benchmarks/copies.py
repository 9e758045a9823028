"""Steps of several copies of a full-size model with random weights, each on a GPU of its own.

    python benchmarks/copies.py                         two copies of GLM-4.5V-FP8 (110 GB each)
    python benchmarks/copies.py -ep                     that share one set of experts (60 GB each)
    python benchmarks/copies.py --model tiny --device cpu --quantization none -ep   whether it runs

Each copy has so many requests. With `-ep` all take their steps together, in the rounds of
`glimt/engine/lockstep.py`. Prints copy 0's decode steps by number of requests of each copy, and the
prompt tokens each second of one.
"""

import argparse
import sys

import msgspec
import torch
from dummy_model import Driver, add_model_arguments, build, decode_ms, prefill_tokens_per_s
from ranks import Seat, add_arguments, run_ranks

from glimt.engine.lockstep import Wave
from glimt.engine.plan import StepPlan
from glimt.experts.group import ExpertGroup
from glimt.parallel.group import gloo
from glimt.processes.build import Engine
from glimt.processes.control import EngineStart


class CopyDriver(Driver):
    """One of several copies that share experts: who has no plan takes part for the others."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        # Nobody has to be woken: all are given the same work.
        self._wave = Wave(engine.mesh.dp_tell, lambda number: None)

    def plan(self) -> StepPlan | None:
        """Of the next step, agreed upon with the others."""
        return self._wave.turn(super().plan(), is_awake=True)


def measure(seat: Seat, options: argparse.Namespace) -> None:
    """This copy's part."""
    options.device, options.tensor_parallel_size = seat.device.type, 1
    shares = options.enable_expert_parallel

    def place(start: EngineStart) -> EngineStart:
        group = None
        if shares:
            inboxes = tuple(map(str, range(seat.size)))
            group = ExpertGroup(
                first=0,
                size=seat.size,
                meeting_point=str(seat.folder / "experts"),
                inboxes=inboxes,
            )
        return msgspec.structs.replace(
            start,
            index=seat.rank,
            place_here=seat.rank,
            num_ranks_here=seat.size,
            expert_group=group,
        )

    host = gloo(seat.meeting().store(seat.size), seat.rank, seat.size)
    engine = build(options, place)
    driver = CopyDriver(engine) if shares else Driver(engine)
    driver.add(64, 8)
    list(driver.turns())
    for requests in options.requests:
        if not seat.goes_on(host):
            return
        step = decode_ms(driver, requests, options.prompt, options.tokens)
        rate = 1000 * seat.size * step["rows"] / step["median_ms"]
        line = f"{step['rows']:4d} requests of each copy: decode step {step['median_ms']:8.2f} ms "
        line += f"(p90 {step['p90_ms']:.2f}), {rate:8.0f} tokens/s of all"
        seat.keep({"shares_experts": shares, **step}, line)
    if seat.goes_on(host):
        prompts = prefill_tokens_per_s(driver, options.prompts, options.prompt)
        row = {"shares_experts": shares, "prefill_tokens_per_s": prompts}
        seat.keep(row, f"prompts: {prompts:.0f} tokens/s of each copy")


def main() -> int:
    """Start the other copies, be copy 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser, of_ranks=False)
    add_arguments(parser)
    parser.add_argument("--requests", type=int, nargs="*", default=[1, 64, 8])
    parser.add_argument("--prompt", type=int, default=1433, help="tokens of each prompt")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each answer")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    return run_ranks(options, lambda seat: measure(seat, options))


if __name__ == "__main__":
    sys.exit(main())
