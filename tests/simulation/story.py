"""What a seed decides: the server's limits, its clients and their habits, and all that goes wrong.

Every random choice of a story is made here or by generators that are seeded here.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from glimt.engine.limits import SchedulerLimits
from glimt.engine.simulated import Faults
from glimt.engine.simulated_model import SimulatedModel
from tests.simulation import oracle
from tests.simulation.media import BAD
from tests.simulation.oracle import EOS, USER, VOCAB_SIZE, Sampled

MODEL = "tiny"
KEYS = ("key-of-one", "key-of-another")
SEED_STEP = 0x9E3779B97F4A7C15  # choice i of a request draws with seed + i * this
BODY_TIMEOUT_S = 12.0
MAX_STALLED_S = 11.0
SMALL_BUFFERS = (0, 0, 100, 2000)
# Stop strings that the tiny vocabulary often writes.
STOPS = ("e", " t", "th", "in", "a", "s", "or", "zq")


@dataclass(kw_only=True)
class Ask:
    """One HTTP request, its client's habits, and what may become of it."""

    index: int
    arrival_s: float
    body: bytes
    parts: list[tuple[float, bytes]]  # (delay since the former, bytes)
    method: str = "POST"
    path: str = "/v1/chat/completions"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    is_upload_stuck: bool = False
    # The client's habits.
    read_s: float = 0.01  # the longest it takes to read what has come
    buffer_bytes: int = 1 << 20  # what is written beyond this waits for the client
    leave_after_s: float | None = None
    leave_after_reads: int | None = None
    stall_after_reads: int | None = None
    # What a good request gets; None for one that must be refused.
    refusals: frozenset[int] = frozenset()
    sampled: Sampled | None = None
    seed: int = 0
    n: int = 1
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        return bool(self.fields.get("stream"))

    @property
    def choice_seeds(self) -> list[int]:
        return [
            (self.seed + choice * SEED_STEP + 2**63) % 2**64 - 2**63 for choice in range(self.n)
        ]


class Story:
    """The plan of one run."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.busy_s = rng.choice([0.0, 0.0002, 0.002])
        self.is_crowded = rng.random() < 0.1  # more than the pages hold, all at once
        self.limits = random_limits(rng, is_crowded=self.is_crowded)
        self.model = SimulatedModel(VOCAB_SIZE, rng.choice([0.0, 0.05, 0.3]))
        self.num_engines = rng.choice([1, 1, 2])
        self.step_s = rng.choice([0.002, 0.02])
        self.line_s = rng.choice([0.0, 0.002, 0.05])
        self.overlap = rng.random() < 0.7
        self.parse_reasoning = rng.random() < 0.2
        self.keys = KEYS[: rng.choice([0, 0, 1, 2])]
        self.faults = self._draw_faults(seed)
        self.full_media = rng.choice([0.0, 0.0, 0.0, 0.2])
        self.media_s = rng.choice([0.0, 0.01, 0.3])
        self.full_line = rng.choice([0.0] * 5 + [0.1])  # probability that a send is refused
        self.max_waiting = rng.choice([0, 1, 64, 64, 64, 64, 64])
        self.scrapes = rng.random() < 0.08
        self._seeds: set[int] = set()
        self.asks = self._draw_asks()
        last_s = max(ask.arrival_s for ask in self.asks)
        self.deaths = self._draw_deaths(last_s + 0.1)
        self.drain_s = rng.random() * (last_s + 0.1) if rng.random() < 0.12 else None
        self.drain_timeout_s = rng.choice([0.0, 0.02, 100.0])

    @property
    def may_be_full(self) -> bool:
        """Whether anybody may be sent away with a 429."""
        good = [ask for ask in self.asks if ask.sampled is not None]
        choices = sum(ask.n for ask in self.asks)
        tokens = sum(
            ask.n * oracle.prompt_of(ask.sampled.conversation, ask.sampled.salt).num_tokens
            for ask in good
            if ask.sampled is not None
        )
        limits = self.limits
        return (
            choices > limits.max_num_seqs + self.max_waiting  # one engine may be left
            or tokens > 4 * limits.num_pages * limits.page_size
            or self.full_media > 0
            or self.full_line > 0
        )

    def _draw_faults(self, seed: int) -> Faults:
        rng = self.rng
        if rng.random() < 0.75:
            return Faults()
        return Faults(
            seed=seed,
            raise_in_launch=rng.choice([0.0, 0.03]),
            raise_in_result=rng.choice([0.0, 0.03, 0.3]),
            nan=rng.choice([0.0, 0.02]),
            bad_image=rng.choice([0.0, 0.2]),
        )

    def _draw_deaths(self, end_s: float) -> list[Death]:
        rng = self.rng
        if rng.random() < 0.75:
            return []
        return [
            Death(
                engine=rng.randrange(self.num_engines),
                at_s=rng.random() * end_s,
                is_graceful=rng.random() < 0.3,
                unnoticed_s=rng.random() * rng.choice([0.0, 0.05]),
                restart_s=rng.choice([None, 0.0, 0.05, 0.5]),
            )
            for _ in range(rng.choice([1, 1, 2]))
        ]

    # ------------------------------------------------------------------------------ requests

    def _draw_asks(self) -> list[Ask]:
        rng = self.rng
        pace_s = rng.choice([0.0, 0.0, 0.01, 0.1])
        arrival_s = 0.0
        asks = []
        for index in range(4 if self.is_crowded else rng.choice([1, 2, 3, 4, 5, 6])):
            arrival_s += rng.random() * (0.0 if self.is_crowded else pace_s)
            ask = self._bad(index) if rng.random() < 0.12 else self._good(index)
            ask.arrival_s = arrival_s
            self._give_habits(ask)
            asks.append(ask)
        return asks

    def _good(self, index: int) -> Ask:
        rng = self.rng
        key = rng.choice(self.keys) if self.keys else None
        salt = rng.choice(["", "", "tenant"])
        conversation = rng.choice([0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9])
        if rng.random() < 0.02:
            conversation = rng.choice([oracle.LONG, oracle.LARGE])
        stops = rng.sample(STOPS, rng.choice([1, 2, 3])) if rng.random() < 0.25 else []
        eos = () if rng.random() < 0.2 else (EOS, USER)
        sampled = Sampled(
            conversation=conversation,
            salt=self._tenant(key) + salt.encode(),
            max_tokens=20 if self.is_crowded else rng.choice([1, 2, 4, 8, 12, 16, 24]),
            min_tokens=rng.choice([0, 0, 0, 1]),
            eos_token_ids=eos,
            stop_token_ids=tuple(rng.sample(range(500), 40)) if rng.random() < 0.2 else (),
            stop=() if self.parse_reasoning else tuple(stops),
            include_stop=rng.random() < 0.3,
            skip_special_tokens=rng.random() < 0.8,
            parse_reasoning=self.parse_reasoning,
            expression=rng.choice(oracle.EXPRESSIONS) if rng.random() < 0.15 else None,
        )
        ask = Ask(index=index, arrival_s=0.0, body=b"", parts=[])
        ask.sampled, ask.n, ask.seed = sampled, rng.choice([1, 1, 1, 2, 3]), self._fresh_seed()
        ask.fields = self._fields(ask, salt)
        ask.body = json.dumps(ask.fields).encode()
        ask.headers = _headers(ask.body, key)
        ask.refusals = self._refusals_of(sampled)
        return ask

    def _fields(self, ask: Ask, salt: str) -> dict[str, Any]:
        rng, sampled = self.rng, ask.sampled
        if sampled is None:
            raise ValueError("only a good request has fields")
        fields: dict[str, Any] = {
            "messages": oracle.messages(sampled.conversation),
            "max_tokens": sampled.max_tokens,
            "seed": ask.seed,
            "n": ask.n,
            "stream": rng.random() < 0.6,
            "ignore_eos": not sampled.eos_token_ids,
            "include_stop_str_in_output": sampled.include_stop,
            "skip_special_tokens": sampled.skip_special_tokens,
            "return_token_ids": rng.random() < 0.4,
            "logprobs": rng.random() < 0.2,
            "return_tokens_as_token_ids": True,
        }
        optional: dict[str, Any] = {
            "model": MODEL if rng.random() < 0.5 else None,
            "min_tokens": sampled.min_tokens,
            "stop": list(sampled.stop),
            "stop_token_ids": list(sampled.stop_token_ids),
            "cache_salt": salt,
            "priority": rng.randrange(3),
            "guided_regex": sampled.expression,
        }
        fields |= {name: value for name, value in optional.items() if value}
        if fields["stream"] and rng.random() < 0.6:
            options = {"include_usage": True, "continuous_usage_stats": rng.random() < 0.5}
            fields["stream_options"] = options
        return fields

    def _refusals_of(self, sampled: Sampled) -> frozenset[int]:
        limits = self.limits
        prompt = oracle.prompt_of(sampled.conversation, sampled.salt)
        too_long = prompt.num_tokens + sampled.max_tokens > limits.max_model_len
        largest = max((image.num_tokens for image in prompt.images), default=0)
        return frozenset({400} if too_long or largest > limits.max_image_tokens else ())

    def _bad(self, index: int) -> Ask:
        rng = self.rng
        ask = Ask(index=index, arrival_s=0.0, body=b"", parts=[])
        good = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        image = {"type": "image_url", "image_url": {"url": BAD}}
        fine = {"type": "image_url", "image_url": {"url": "data:4"}}
        with_image = [{"role": "user", "content": [fine, image, fine]}]
        status, changes = rng.choice(
            [
                (400, {"n": 17}),
                (400, {"messages": []}),
                (400, {"temperature": 0, "n": 2}),
                (400, {"max_tokens": 10**6}),
                (400, {"messages": with_image}),
                (400, {"tools": [{"type": "function"}]}),
                (404, {"model": "another"}),
            ]
        )
        ask.body = json.dumps(good | changes).encode()
        if rng.random() < 0.2:
            ask.body, status = b'{"messages": ', 400
        ask.headers = _headers(ask.body, rng.choice(self.keys) if self.keys else None)
        ask.refusals = frozenset({status})
        kind = rng.random()
        if self.keys and kind < 0.2:
            ask.headers, ask.refusals = _headers(ask.body, "wrong"), frozenset({401})
        elif kind < 0.3:
            ask.path, ask.refusals = "/v1/nothing", frozenset({404})
        elif kind < 0.4:
            ask.headers = [
                (k, b"text/plain" if k == b"content-type" else v) for k, v in ask.headers
            ]
            ask.refusals = frozenset({415})
        elif kind < 0.6:
            ask.is_upload_stuck, ask.refusals = True, frozenset({408})
        return ask

    def _give_habits(self, ask: Ask) -> None:
        rng = self.rng
        cuts = sorted(rng.randrange(len(ask.body) + 1) for _ in range(rng.choice([0, 0, 1, 3])))
        edges = [0, *cuts, len(ask.body)]
        slow_s = rng.choice([0.0, 0.01])
        ask.parts = [(rng.random() * slow_s, ask.body[start:end]) for start, end in pairwise(edges)]
        ask.buffer_bytes = rng.choice([*SMALL_BUFFERS, 1 << 20])
        ask.read_s = rng.choice([0.0, 0.01, 0.1, 1.0])
        habit = rng.random()
        if habit < 0.1:
            ask.leave_after_s = rng.random() * rng.choice([0.03, 0.3])
        elif habit < 0.18:
            ask.leave_after_reads = rng.randint(1, 6)
        elif habit < 0.23:
            ask.stall_after_reads, ask.buffer_bytes = rng.randint(0, 3), 0

    def _tenant(self, key: str | None) -> bytes:
        if key is None or len(self.keys) < 2:
            return b""
        return hashlib.sha256(key.encode()).digest()

    def _fresh_seed(self) -> int:
        while True:
            seed = self.rng.randrange(-(2**63), 2**63)
            if seed not in self._seeds and seed != -1:
                self._seeds.add(seed)
                return seed


@dataclass(frozen=True)
class Death:
    """The end of an engine, and its restart. The server learns of it `unnoticed_s` later."""

    engine: int
    at_s: float
    is_graceful: bool
    unnoticed_s: float
    restart_s: float | None


def random_limits(rng: random.Random, *, is_crowded: bool) -> SchedulerLimits:
    """From roomy to so tight that everybody is preempted."""
    page_size = rng.choice([4, 8, 16])
    max_model_len = 64 if is_crowded else rng.choice([40, 48, 64, 96])
    max_num_seqs = 8 if is_crowded else rng.choice([1, 2, 4, 8])
    return SchedulerLimits(
        num_pages=-(-max_model_len // page_size) + (0 if is_crowded else rng.choice([0, 2, 8, 40])),
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + rng.choice([1, 8, 40, 200]),
        max_model_len=max_model_len,
        image_budget=rng.choice([8, 12, 40]),
        image_cache_tokens=rng.choice([8, 16, 40]),
        prefix_caching=rng.random() < 0.8,
        follow_tokens=8 if max_model_len % 3 else 0,
        policy=rng.choice(["fcfs", "priority"]),
        vocab_size=VOCAB_SIZE,
    )


def _headers(body: bytes, key: str | None) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"host", b"localhost:8000"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    return headers if key is None else [*headers, (b"authorization", b"Bearer " + key.encode())]
