"""AnswerGroup: the answers to several prompts of one request, read as one."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from glimt.frontend.answer import Answer, Delta, UsageCounts
from glimt.wire import TokenLogprobs


class AnswerGroup:
    """Choice j of answer i has the number i * n + j; otherwise it reads as an `Answer`.

    If one of them fails, all do. Lives on one event loop.
    """

    def __init__(self, answers: Sequence[Answer], n: int) -> None:
        self._answers = tuple(answers)
        self._n = n
        self._reads: dict[int, asyncio.Task[list[Delta]]] = {}  # by answer, under way

    @property
    def is_complete(self) -> bool:
        """Nothing more will come."""
        return all(answer.is_complete for answer in self._answers)

    @property
    def usage(self) -> UsageCounts:
        """Counts so far, over all prompts."""
        return UsageCounts(*map(sum, zip(*(each.usage for each in self._answers), strict=True)))

    @property
    def prompt_logprobs(self) -> list[tuple[TokenLogprobs, ...] | None]:
        """By prompt, as `Answer` has it for one."""
        return [each for answer in self._answers for each in answer.prompt_logprobs]

    async def receive(self) -> list[Delta]:
        """The deltas that arrived since; [] after the last.

        Raises the typed error that ended one of the generations.
        """
        if len(self._answers) == 1:
            return await self._answers[0].receive()
        for index, answer in enumerate(self._answers):
            if index not in self._reads and not answer.is_complete:
                self._reads[index] = asyncio.ensure_future(answer.receive())
        if not self._reads:
            return []
        done, _ = await asyncio.wait(self._reads.values(), return_when=asyncio.FIRST_COMPLETED)
        deltas: list[Delta] = []
        for index in [index for index, read in self._reads.items() if read in done]:
            first = index * self._n
            deltas += [
                msgspec.structs.replace(delta, choice=first + delta.choice)
                for delta in await self._reads.pop(index)
            ]
        return deltas

    def close(self) -> None:
        """End what still runs."""
        for read in self._reads.values():
            read.add_done_callback(_look_at)
            read.cancel()
        for answer in self._answers:
            answer.close()

    def facts(self) -> dict[str, Any]:
        """For the log line: counts summed, the earliest first token, all ends; no text."""
        all_facts = [answer.facts() for answer in self._answers]
        firsts = [facts["ttft_s"] for facts in all_facts if facts["ttft_s"] is not None]
        queued = [facts["queue_s"] for facts in all_facts if facts["queue_s"] is not None]
        counts = [key for key in all_facts[0] if key.endswith("_tokens")]
        return {
            **{key: sum(facts[key] for facts in all_facts) for key in counts},
            "queue_s": min(queued, default=None),
            "ttft_s": min(firsts, default=None),
            "finish_reason": ",".join(facts["finish_reason"] for facts in all_facts),
        }


def _look_at(read: "asyncio.Task[list[Delta]]") -> None:
    """An error that nobody waits for any more has been reported by another answer."""
    if not read.cancelled():
        read.exception()
