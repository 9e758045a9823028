"""Whether a connection got what it must: one whole answer, with exactly its own text and counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from glimt.engine.simulated import Faults
from tests.simulation import oracle
from tests.simulation.connection import Connection
from tests.simulation.oracle import Expected
from tests.simulation.story import Story

_FAULTS = {"step_failed", "numerical_error", "engine_failed"}


class Judge:
    """Judges the connections of one story."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._has_faults = story.faults != Faults()
        self._may_be_full = story.may_be_full

    def problems(self, connection: Connection) -> Iterator[str]:
        """All that is wrong with one answer."""
        yield from connection.problems
        if not connection.is_closed:
            yield "it was never done with"
        elif not connection.is_answered:
            if connection.status == 200 and connection.ask.is_stream:
                yield from self._judge_stream(connection, is_cut=True)
        elif connection.status != 200:
            yield from self._judge_refusal(connection)
        elif connection.ask.refusals:
            yield f"a bad request got an answer: {bytes(connection.written)!r}"
        elif connection.ask.is_stream:
            yield from self._judge_stream(connection, is_cut=False)
        else:
            yield from self._judge_whole(connection)

    def _expected(self, connection: Connection) -> list[Expected]:
        story, ask = self._story, connection.ask
        if ask.sampled is None:
            raise ValueError("a bad request has no answer")
        max_model_len = story.limits.max_model_len
        return [
            oracle.expect(ask.sampled, seed, story.model, max_model_len)
            for seed in ask.choice_seeds
        ]

    # ------------------------------------------------------------------------------- errors

    def _judge_refusal(self, connection: Connection) -> Iterator[str]:
        status, headers = connection.status, connection.headers
        error = json.loads(connection.written)["error"]
        if status in (429, 503) and "retry-after" not in headers:
            yield f"a {status} does not say when to come back"
        yield from self._judge_error(connection, status, error)

    def _judge_error(self, connection: Connection, status: int, error: Any) -> Iterator[str]:
        code, ask = error["code"], connection.ask
        allowed = status in ask.refusals
        allowed |= status == 429 and code == "overloaded" and self._may_be_full
        allowed |= status == 503 and code == "not_ready" and connection.may_be_unready
        allowed |= status == 500 and code in _FAULTS and self._has_faults
        if not allowed:
            yield f"it got {status} {error}"

    # -------------------------------------------------------------------------------- whole

    def _judge_whole(self, connection: Connection) -> Iterator[str]:
        body = json.loads(connection.written)
        ask, expected = connection.ask, self._expected(connection)
        if len(body["choices"]) != ask.n:
            yield f"{len(body['choices'])} choices of {ask.n}"
            return
        for index, (choice, right) in enumerate(zip(body["choices"], expected, strict=True)):
            message = choice["message"]
            ends = choice["finish_reason"], choice["stop_reason"]
            yield from _differences(
                index=(choice["index"], index),
                content=(message["content"], right.content),
                reasoning=(message["reasoning"] or "", right.reasoning),
                end=(ends, (right.finish_reason, right.stop_reason)),
            )
            yield from self._judge_tokens(
                connection, right, choice.get("token_ids"), choice["logprobs"]
            )
        yield from self._judge_usage(connection, body["usage"], expected)

    def _judge_tokens(
        self, connection: Connection, right: Expected, token_ids: Any, logprobs: Any
    ) -> Iterator[str]:
        fields = connection.ask.fields
        if fields["return_token_ids"]:
            yield from _differences(token_ids=(token_ids, right.token_ids))
        if fields["logprobs"]:
            tokens = [f"token_id:{token_id}" for token_id in right.token_ids]
            yield from _differences(
                logprobs=([each["token"] for each in logprobs["content"]], tokens)
            )

    def _judge_usage(
        self, connection: Connection, usage: Any, expected: list[Expected]
    ) -> Iterator[str]:
        num_prompt = self._num_prompt_tokens(connection)
        num_answer = sum(len(right.token_ids) for right in expected)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        yield from _differences(
            prompt_tokens=(usage["prompt_tokens"], num_prompt),
            completion_tokens=(usage["completion_tokens"], num_answer),
            total_tokens=(usage["total_tokens"], num_prompt + num_answer),
        )
        if not 0 <= cached < num_prompt:
            yield f"{cached} of {num_prompt} prompt tokens were cached"

    def _num_prompt_tokens(self, connection: Connection) -> int:
        sampled = connection.ask.sampled
        if sampled is None:
            return 0
        return oracle.prompt_of(sampled.conversation, sampled.salt).num_tokens

    # ------------------------------------------------------------------------------- stream

    def _judge_stream(self, connection: Connection, *, is_cut: bool) -> Iterator[str]:
        """`is_cut`: the client left or stalled, so the stream may end anywhere between events."""
        lines = connection.written.decode().split("\n\n")
        if lines.pop() != "" or not all(line.startswith("data: ") for line in lines):
            yield "it is not a stream of events"
            return
        data = [line.removeprefix("data: ") for line in lines]
        is_done = data[-1:] == ["[DONE]"]
        events = [json.loads(each) for each in (data[:-1] if is_done else data)]
        if is_done == is_cut:
            yield "it ends with [DONE] and is cut" if is_cut else "it does not end with [DONE]"
        if "[DONE]" in data[:-1]:
            yield "it goes on after [DONE]"
        error = events.pop()["error"] if events and "error" in events[-1] else None
        yield from self._judge_events(
            connection, events, is_cut=is_cut, has_failed=error is not None
        )
        if error is not None:
            status = 503 if error["code"] == "not_ready" else 500
            yield from self._judge_error(connection, status, error)

    def _judge_events(
        self, connection: Connection, events: list[Any], *, is_cut: bool, has_failed: bool
    ) -> Iterator[str]:
        ask, expected = connection.ask, self._expected(connection)
        heard = [_Heard() for _ in range(ask.n)]
        usages = [event["usage"] for event in events if "usage" in event]
        for event in events:
            for choice in event["choices"]:
                yield from heard[choice["index"]].add(choice)
        for each, right in zip(heard, expected, strict=True):
            yield from self._judge_heard(connection, each, right)
        are_complete = all(each.ends for each in heard)
        if has_failed and are_complete:
            yield "it failed, and yet every choice has a finish_reason"
        if has_failed or is_cut:
            return
        if not are_complete:
            yield "it ended without an error, and a choice without finish_reason"
        options = ask.fields.get("stream_options", {})
        if not options.get("include_usage"):
            if usages:
                yield "it tells a usage that nobody asked for"
            return
        if not usages or events[-1]["choices"]:
            yield "the usage is not the last thing told"
            return
        if (len(usages) == len(events)) != bool(options.get("continuous_usage_stats")):
            yield f"{len(usages)} usages in {len(events)} events"
        yield from self._judge_usage(connection, usages[-1], expected)

    def _judge_heard(self, connection: Connection, heard: _Heard, right: Expected) -> Iterator[str]:
        fields = connection.ask.fields
        tokens = [f"token_id:{token_id}" for token_id in right.token_ids]
        told = {
            "content": (heard.content, right.content),
            "reasoning": (heard.reasoning, right.reasoning),
        }
        if right.is_mended:
            told = {}  # what was told cannot be taken back
        if fields["return_token_ids"]:
            told["token_ids"] = (heard.token_ids, right.token_ids)
        if fields["logprobs"]:
            told["logprobs"] = (heard.logprobs, tokens)
        for name, (mine, whole) in told.items():
            if mine != whole if heard.ends else mine != whole[: len(mine)]:
                yield f"{name} is {mine!r}, not {whole!r}"
        if heard.ends and heard.ends != [(right.finish_reason, right.stop_reason)]:
            yield f"it ended with {heard.ends}, not {right.finish_reason} {right.stop_reason}"


class _Heard:
    """What a stream told of one choice."""

    def __init__(self) -> None:
        self.content = ""
        self.reasoning = ""
        self.token_ids: list[int] = []
        self.logprobs: list[str] = []
        self.ends: list[tuple[str, Any]] = []
        self._num_chunks = 0

    def add(self, choice: Any) -> Iterator[str]:
        """The next chunk."""
        delta = choice["delta"]
        if self.ends:
            yield "a choice goes on after its finish_reason"
        if ("role" in delta) != (self._num_chunks == 0):
            yield "the role is not told once, first"
        self._num_chunks += 1
        self.content += delta.get("content", "")
        self.reasoning += delta.get("reasoning", "")
        self.token_ids += choice.get("token_ids", [])
        if choice["logprobs"] is not None:
            self.logprobs += [each["token"] for each in choice["logprobs"]["content"]]
        if choice["finish_reason"] is not None:
            self.ends.append((choice["finish_reason"], choice["stop_reason"]))


def _differences(**pairs: tuple[Any, Any]) -> Iterator[str]:
    for name, (mine, right) in pairs.items():
        if mine != right:
            yield f"{name} is {mine!r}, not {right!r}"
