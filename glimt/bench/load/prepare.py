"""Prompts -> jobs with ready-made bodies, before the clock starts."""

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from glimt.bench.data.prompt import Prompt, Turn
from glimt.bench.load.bodies import BodyMaker, BodyStore, check_turn
from glimt.bench.load.runner import Job, LaterTurn
from glimt.bench.options import Backend, SamplingOptions


@dataclass
class Workload:
    """All jobs of a run, the bodies they refer to, and a digest of the prompts."""

    store: BodyStore = field(default_factory=BodyStore)
    jobs: list[Job] = field(default_factory=list)
    digest: str = ""

    @property
    def num_requests(self) -> int:
        """Requests of all conversations."""
        return sum(1 + len(job.later) for job in self.jobs)


def prepare(
    prompts: Iterable[Prompt],
    maker: BodyMaker,
    backend: Backend,
    sampling: SamplingOptions,
    seed: int,
    step: Callable[[int], None],
) -> Workload:
    """Encode every first turn. `step` is told how many are done. Raises BadSettings."""
    workload, digest = Workload(), hashlib.sha256()
    models = _models(sampling, seed)
    index = 0
    for number, prompt in enumerate(prompts):
        first = prompt.turns[0]
        check_turn(backend, first, is_conversation=len(prompt.turns) > 1)
        model = models(number)
        body = maker.make(first, [], model)
        _digest(prompt.unmarked or prompt, digest)
        job = _job(prompt, number, index, workload.store.add(body), model)
        workload.jobs.append(job)
        index += len(prompt.turns)
        step(number + 1)
    workload.store.seal()
    workload.digest = digest.hexdigest()[:16]
    return workload


def _digest(prompt: Prompt, digest: "hashlib._Hash") -> None:
    """What is asked, whoever is asked and with which parameters."""
    for turn in prompt.turns:
        for part in turn.parts:
            digest.update((part if isinstance(part, str) else part.url).encode() + b"\0")
        digest.update(repr((turn.token_ids, turn.output_tokens)).encode())


def _job(prompt: Prompt, number: int, index: int, body: int, model: str | None) -> Job:
    first = prompt.turns[0]
    return Job(
        index=index,
        conversation=number,
        body=body,
        output_tokens=first.output_tokens,
        text_tokens=first.text_tokens,
        num_images=len(first.images),
        image_pixels=sum(image.pixels for image in first.images),
        at_s=prompt.at_s,
        model=model,
        later=tuple(_later(turn, index + place) for place, turn in enumerate(prompt.turns[1:], 1)),
    )


def _later(turn: Turn, index: int) -> LaterTurn:
    return LaterTurn(
        index=index,
        text=turn.text,
        output_tokens=turn.output_tokens,
        text_tokens=turn.text_tokens,
        pause_s=turn.pause_s,
    )


def _models(sampling: SamplingOptions, seed: int) -> Callable[[int], str | None]:
    """The model of each conversation: --lora-modules in turn or at random, else the run's."""
    modules = sampling.lora_modules
    if not modules:
        return lambda _: None
    if sampling.lora_assignment == "round-robin":
        return lambda number: modules[number % len(modules)]
    draw = random.Random(seed)
    return lambda _: draw.choice(modules)
