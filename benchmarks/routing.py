"""What it is worth to route by caches: chats over several replicas, simulated step by step.

    python benchmarks/routing.py
    python benchmarks/routing.py --replicas 8 --chats 2000 --turns 3

Real client, real schedulers with their prefix and image caches; no model: a step computes at most
`--budget` tokens and takes as long as all others. Chats arrive over time; each turn sends the whole
conversation again, and in some an image was shown first. Once by outstanding work alone, once with
caches weighed.
"""

import argparse
import asyncio
import hashlib
import statistics
from dataclasses import dataclass, field

import msgspec
import numpy as np

from glimt.engine.limits import SchedulerLimits
from glimt.engine.plan import InFlight
from glimt.engine.scheduler import Scheduler
from glimt.engine.simulated import InstantExecutor
from glimt.frontend.client import EngineClient
from glimt.frontend.prompt import Prompt
from glimt.metrics import Metrics
from glimt.wire import (
    Abort,
    EngineInfo,
    ImageSpan,
    Output,
    Outputs,
    PixelRef,
    SamplingParams,
    Submit,
)

VOCAB = 100_000
IMAGE_TOKENS = 1300


@dataclass
class Chat:
    """One conversation on its way."""

    tokens: np.ndarray
    images: tuple[ImageSpan, ...]
    turns: int
    due: int  # step at which the next turn is sent
    sent: int = 0


@dataclass
class Replica:
    """One engine: takes messages, makes a step when told."""

    index: int
    scheduler: Scheduler
    computed: int = 0
    encoded: int = 0
    executor: InstantExecutor = field(default_factory=lambda: InstantExecutor(VOCAB))

    def take(self, message: msgspec.Struct) -> bool:
        """What the client sends."""
        if isinstance(message, Submit):
            self.scheduler.add(message)
        elif isinstance(message, Abort):
            self.scheduler.abort(message.server, message.request_id)
        return True

    def step(self) -> list[Output]:
        """One step, whole."""
        plan = self.scheduler.schedule()
        if plan is None:
            return []
        self.computed += sum(item.num_tokens for item in plan.work)
        self.encoded += sum(span.num_tokens for span in plan.encode)
        flight: InFlight = self.executor.launch(plan)
        return [output for _, output in self.scheduler.commit(plan, flight.result())]


def limits(options: argparse.Namespace) -> SchedulerLimits:
    """Of each replica."""
    return SchedulerLimits(
        num_pages=options.kv_tokens // 64,
        page_size=64,
        max_num_seqs=64,
        max_num_batched_tokens=options.budget,
        max_model_len=32_768,
        image_budget=options.budget,
        image_cache_tokens=8 * options.budget,
        vocab_size=VOCAB,
    )


def make_chats(options: argparse.Namespace) -> list[Chat]:
    """Half of them share one of four long instructions; a third show an image."""
    random = np.random.default_rng(options.seed)
    instructions = [random.integers(0, VOCAB, 2000).astype(np.int32) for _ in range(4)]
    chats = []
    for number in range(options.chats):
        head = instructions[number % 4] if number % 2 else random.integers(0, VOCAB, 50)
        images: tuple[ImageSpan, ...] = ()
        if number % 3 == 0:
            content = hashlib.sha256(str(number).encode()).digest()
            images = (
                ImageSpan(
                    content_hash=content,
                    start=len(head),
                    num_tokens=IMAGE_TOKENS,
                    grid_h=2,
                    grid_w=2 * IMAGE_TOKENS,
                    num_frames=1,
                    pixels=PixelRef(0, 0, 0),
                ),
            )
            head = np.append(head, np.zeros(IMAGE_TOKENS))
        question = random.integers(0, VOCAB, 150)
        due = int(random.integers(0, options.chats * options.turns * 100 // options.rate))
        tokens = np.append(head, question).astype(np.int32)
        chats.append(Chat(tokens, images, options.turns, due))
    return chats


async def simulate(options: argparse.Namespace, *, weighs_caches: bool) -> dict[str, float]:
    """Play all chats; steps to the first token, and tokens that had to be computed."""
    client = EngineClient(
        clock=lambda: 0.0,
        metrics=Metrics(model_name="m"),
        max_waiting=100_000,
        weighs_caches=weighs_caches,
    )
    bounds = limits(options)
    info = EngineInfo(
        max_model_len=bounds.max_model_len,
        vocab_size=VOCAB,
        num_pages=bounds.num_pages,
        page_size=64,
        max_num_batched_tokens=options.budget,
        max_num_seqs=64,
        max_image_tokens=bounds.max_image_tokens,
    )
    replicas = [Replica(index, Scheduler(bounds)) for index in range(options.replicas)]
    for replica in replicas:
        client.add_engine(replica.index, replica.take, info)
    random = np.random.default_rng(options.seed + 1)
    chats, waits, step = make_chats(options), [], 0
    running: dict[int, tuple[Chat, int, list[int]]] = {}
    while any(chat.turns for chat in chats) or running:
        for chat in chats:
            if chat.turns and chat.due <= step:
                chat.turns, chat.due = chat.turns - 1, 1 << 60
                prompt = Prompt(chat.tokens, images=chat.images)
                before = client.num_open
                client.generate(prompt, SamplingParams(max_tokens=60, temperature=0.0))
                running[client._last_id] = (chat, step, [])
                if client.num_open != before + 1:
                    raise SystemExit("a request was not taken")
        step += 1
        for replica in replicas:
            outputs = replica.step()
            client.deliver(replica.index, Outputs(tuple(outputs)))
            for output in outputs:
                chat, sent, tokens = running[output.request_id]
                if output.token_ids and not tokens:
                    waits.append(step - sent)
                tokens += output.token_ids
                if output.finish_reason is not None:
                    del running[output.request_id]
                    more = random.integers(0, VOCAB, 100).astype(np.int32)
                    chat.tokens = np.concatenate([chat.tokens, np.array(tokens, np.int32), more])
                    chat.due = step + int(random.integers(20, 200))
    return {
        "steps": step,
        "computed_tokens": sum(replica.computed for replica in replicas),
        "encoded_image_tokens": sum(replica.encoded for replica in replicas),
        "first_token_mean": statistics.mean(waits),
        "first_token_p99": sorted(waits)[int(0.99 * len(waits))],
    }


def main() -> None:
    """Both ways, side by side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--chats", type=int, default=800)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rate", type=int, default=400, help="turns in 100 steps, all replicas")
    parser.add_argument("--budget", type=int, default=1536, help="tokens of a step")
    parser.add_argument("--kv-tokens", type=int, default=200_000, help="of each replica")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [
        asyncio.run(simulate(options, weighs_caches=weighs_caches))
        for weighs_caches in (False, True)
    ]
    print(f"{'':<22}{'by load':>12}{'and caches':>12}{'ratio':>8}")
    for name in rows[0]:
        plain, aware = rows[0][name], rows[1][name]
        print(f"{name:<22}{plain:>12,.1f}{aware:>12,.1f}{aware / max(plain, 1e-9):>8.2f}")


if __name__ == "__main__":
    main()
