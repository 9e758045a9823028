"""Outputs of a generation -> deltas of its answer: thoughts and content, tokens, ends, counts.

A stream sends the deltas one by one, an unstreamed answer is all of them folded: there is no other
path from tokens to text.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from glimt.errors import GlimtError
from glimt.frontend.boxes import BoxMode, BoxTokens
from glimt.frontend.generation import Generation
from glimt.frontend.prompt import Prompt
from glimt.frontend.reasoning import ReasoningTokens
from glimt.frontend.repetition import RepetitionDetector, RepetitionRule
from glimt.frontend.reply import ReplyDelta, ReplyReader, fold, in_order
from glimt.frontend.tokenizer import Tokenizer
from glimt.frontend.tool_calls import CallDelta, CallRules
from glimt.metrics import GenerationTimes, Metrics
from glimt.wire import Output, SamplingParams, TokenLogprobs


class Delta(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is new in one choice. With `finish_reason` it is the choice's last."""

    choice: int
    reasoning: str = ""
    content: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None  # stop · length · tool_calls · repetition
    stop_reason: int | str | None = None  # the stop string or token that matched; not a plain eos
    calls: tuple[CallDelta, ...] = ()  # each call at most once
    boxes: tuple[str, ...] = ()  # texts of boxes that are whole now


def fold_deltas(deltas: Iterable[Delta]) -> ReplyDelta:
    """All deltas of one choice as its whole text, thoughts and calls."""
    return fold(
        ReplyDelta(
            delta.reasoning,
            delta.content,
            calls=delta.calls,
            boxes=delta.boxes,
        )
        for delta in deltas
    )


class UsageCounts(NamedTuple):
    """Tokens. The prompt counts once, media included; the rest is summed over the choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How tokens become text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    include_reasoning: bool = True
    repetition: RepetitionRule | None = None
    reasoning: ReasoningTokens | None = None  # None = all is content
    calls: CallRules | None = None  # None = there are no calls, their marks are text
    boxes: BoxMode = "keep"


class Answer:
    """The reading end of one request as text; `receive` until it gives [], then `close`.

    Closing ends what still runs. Measures latencies on the way.
    """

    def __init__(
        self,
        generation: Generation,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        n: int = 1,
        options: TextOptions,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        arrival_s: float,
        metrics: Metrics,
    ) -> None:
        self.prompt = prompt
        self._generation = generation
        self._clock = clock
        self._arrival_s = arrival_s
        self._metrics = metrics
        self._choices = [
            _Choice(index, _reader(tokenizer, prompt, sampling, options), sampling, options)
            for index in range(n)
        ]
        self._num_running = n
        self._has_failed = False
        self._prompt_logprobs: tuple[TokenLogprobs, ...] | None = None

    async def receive(self) -> list[Delta]:
        """The deltas that arrived since, each choice's in order; [] after the last.

        Raises the typed error that ended the generation.
        """
        if self._num_running == 0:
            return []
        try:
            arrived = await self._generation.receive()
        except GlimtError:
            self._has_failed = True
            raise
        now_s = self._clock()
        deltas: list[Delta] = []
        for index, output in _merged(arrived):
            choice = self._choices[index]
            if choice.finish_reason is None:
                deltas += self._take(choice, output, now_s)
        return deltas

    @property
    def is_complete(self) -> bool:
        """Nothing more will come."""
        return self._num_running == 0

    @property
    def usage(self) -> UsageCounts:
        """Counts so far."""
        choices = self._choices
        return UsageCounts(
            prompt_tokens=self.prompt.num_tokens,
            completion_tokens=sum(choice.num_tokens for choice in choices),
            cached_tokens=max(choice.num_cached_tokens for choice in choices),
            reasoning_tokens=sum(choice.reader.num_reasoning_tokens for choice in choices),
        )

    @property
    def prompt_logprobs(self) -> list[tuple[TokenLogprobs, ...] | None]:
        """For the one prompt: of its tokens from the second, once the first delta is there; None
        if the request did not ask for them."""
        return [self._prompt_logprobs]

    def close(self) -> None:
        """End what still runs, and count it as an error or as an abort."""
        self._generation.close()
        now_s = self._clock()
        for choice in self._choices:
            if choice.finish_reason is None:
                choice.finish_reason = "error" if self._has_failed else "abort"
                self._observe_end(choice, now_s)

    def facts(self) -> dict[str, Any]:
        """For the log line: counts, times, ends; no text."""
        usage = self.usage
        firsts = [choice.first_s for choice in self._choices if choice.first_s is not None]
        queued = [c.scheduled_s - self._arrival_s for c in self._choices if c.scheduled_s]
        missing = "error" if self._has_failed else "abort"
        ends = ",".join(choice.finish_reason or missing for choice in self._choices)
        return {
            "prompt_tokens": usage.prompt_tokens,
            "media_tokens": self.prompt.num_media_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "queue_s": max(0.0, min(queued)) if queued else None,
            "ttft_s": min(firsts) - self._arrival_s if firsts else None,
            "finish_reason": ends,
        }

    def _take(self, choice: "_Choice", output: Output, now_s: float) -> list[Delta]:
        if output.prompt_logprobs is not None:  # the same with every choice
            self._prompt_logprobs = output.prompt_logprobs
        num_before = choice.num_tokens
        last_s = choice.last_s
        deltas = choice.take(output, now_s)
        num_new = choice.num_tokens - num_before
        if num_new:
            self._metrics.observe_tokens(num_new)
            if last_s is None:
                self._metrics.time_to_first_token.observe(now_s - self._arrival_s)
            else:
                self._metrics.inter_token_latency.observe(now_s - last_s)
        if choice.finish_reason is not None:
            self._num_running -= 1
            if output.finish_reason is None:  # a stop string: the engine does not know
                self._generation.abort(choice.index)
            self._observe_end(choice, now_s)
        return deltas

    def _observe_end(self, choice: "_Choice", now_s: float) -> None:
        first_s, scheduled_s = choice.first_s, choice.scheduled_s
        last_s = choice.last_s if choice.last_s is not None else first_s
        # A label of the metrics tells how generations end: one with calls has stopped.
        reason = "stop" if choice.finish_reason == "tool_calls" else choice.finish_reason
        times = GenerationTimes(
            finish_reason=reason or "abort",
            cached_tokens=choice.num_cached_tokens,
            completion_tokens=choice.num_tokens,
            e2e_s=now_s - self._arrival_s,
            queue_s=_since(scheduled_s, self._arrival_s),
            prefill_s=_since(first_s, scheduled_s),
            decode_s=_since(last_s, first_s),
        )
        self._metrics.observe_generation(times, self.prompt.num_tokens)
        if all(each.finish_reason is not None for each in self._choices):
            self._metrics.observe_longest(max(each.num_tokens for each in self._choices))


class _Choice:
    """One of the n answers: its text so far, and when it came."""

    def __init__(
        self, index: int, reader: ReplyReader, sampling: SamplingParams, options: TextOptions
    ) -> None:
        self.index = index
        self.reader = reader
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.scheduled_s: float | None = None
        self.finish_reason: str | None = None
        # These end an answer between two tokens, wherever that is in an output.
        may_call_once = options.calls is not None and options.calls.only_one
        self._may_end_early = bool(options.stop) or may_call_once
        # Where one of these is among several tokens, the order of what they say has to be kept.
        self._turns = _turning_marks(options)
        self._include_stop = options.include_stop
        self._include_reasoning = options.include_reasoning
        self._plain_eos = sampling.eos_token_ids[:1]
        self._detector = RepetitionDetector(options.repetition) if options.repetition else None

    def take(self, output: Output, now_s: float) -> list[Delta]:
        """Read an output's tokens. There is always a delta; the last one says how it ended."""
        if output.scheduled_s and self.scheduled_s is None:
            self.scheduled_s = output.scheduled_s
            self.num_cached_tokens = output.num_cached_tokens
        token_ids = output.token_ids
        if token_ids:
            if self.first_s is None:
                self.first_s = now_s
            self.last_s = now_s
        if self._detector is not None:
            output = _cut_at_loop(output, self._detector)
        replies, num_read = self._read(output)
        self.num_tokens += num_read
        last = replies[-1]
        stop_reason: int | str | None = last.stopped
        if last.stopped is not None or last.ends_with_call:
            self.finish_reason = "stop"
        elif output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            if output.stop_token_id not in self._plain_eos:
                stop_reason = output.stop_token_id
        if self.finish_reason == "stop" and self.reader.num_calls:
            self.finish_reason = "tool_calls"
        tokens = {"token_ids": token_ids[:num_read], "logprobs": (output.logprobs or ())[:num_read]}
        # Together with what is not text, so that nobody takes them all for the text's.
        mixed = (index for index, reply in enumerate(replies) if reply.calls or reply.reasoning)
        place = next(mixed, 0)
        deltas = [
            self._delta(reply, **(tokens if index == place else {}))
            for index, reply in enumerate(replies)
        ]
        if self.finish_reason is not None:
            ends = {"finish_reason": self.finish_reason, "stop_reason": stop_reason}
            deltas[-1] = msgspec.structs.replace(deltas[-1], **ends)
        return deltas

    def _delta(self, reply: ReplyDelta, **tokens: Any) -> Delta:
        return Delta(
            choice=self.index,
            reasoning=reply.reasoning if self._include_reasoning else "",
            content=reply.content,
            calls=reply.calls,
            boxes=reply.boxes,
            **tokens,
        )

    def _read(self, output: Output) -> tuple[list[ReplyDelta], int]:
        """The text of the output's tokens, and how many of them were read: none after an early
        end, whose place would be lost if several tokens were read at once."""
        token_ids = output.token_ids
        one_by_one = self._may_end_early or not self._turns.isdisjoint(token_ids)
        if output.finish_reason is None and not one_by_one:
            return [self.reader.push(token_ids)], len(token_ids)
        # The token that ends an answer belongs to it but is not text.
        is_hidden = output.stop_token_id is not None and not self._include_stop
        visible = token_ids[:-1] if is_hidden else token_ids
        replies: list[ReplyDelta] = []
        for index, some in enumerate([(each,) for each in visible] if one_by_one else [visible]):
            replies.append(self.reader.push(some))
            if replies[-1].stopped is not None or replies[-1].ends_with_call:
                return in_order(replies), index + 1
        if output.finish_reason is not None:
            replies.append(self.reader.finish(is_cut=output.finish_reason != "stop"))
        return in_order(replies), len(token_ids)


def _turning_marks(options: TextOptions) -> frozenset[int]:
    """Marks after which something may come that a delta tells before what came earlier."""
    marks = [options.calls.tokens.begin, options.calls.tokens.end] if options.calls else []
    return frozenset([*marks, options.reasoning.begin] if options.reasoning else marks)


def _reader(
    tokenizer: Tokenizer, prompt: Prompt, sampling: SamplingParams, options: TextOptions
) -> ReplyReader:
    boxes = None if options.boxes == "keep" else BoxTokens.of(tokenizer)
    skip_ids = tokenizer.skip_ids if options.skip_special_tokens else frozenset()
    return ReplyReader(
        tokenizer,
        options.reasoning,
        prompt.token_ids,
        calls=options.calls,
        boxes=boxes if options.boxes == "structured" else None,
        skip_ids=skip_ids | (boxes.ids if boxes else frozenset()),
        stop=options.stop,
        include_stop=options.include_stop,
        min_tokens=sampling.min_tokens,
    )


def _cut_at_loop(output: Output, detector: RepetitionDetector) -> Output:
    """The output up to where the answer has been found to repeat itself, which ends it."""
    num_read = detector.push(output.token_ids)
    if num_read is None or (output.finish_reason and num_read == len(output.token_ids)):
        return output
    return msgspec.structs.replace(
        output,
        token_ids=output.token_ids[:num_read],
        finish_reason="repetition",
        stop_token_id=None,
    )


def _merged(arrived: list[tuple[int, Output]]) -> list[tuple[int, Output]]:
    """One output for each choice: when the loop fell behind, several tokens go out together."""
    if len(arrived) == 1:
        return arrived
    by_choice: dict[int, list[Output]] = {}
    for index, output in arrived:
        by_choice.setdefault(index, []).append(output)
    return [(index, _joined(outputs)) for index, outputs in by_choice.items()]


def _joined(outputs: list[Output]) -> Output:
    if len(outputs) == 1:
        return outputs[0]
    first, last = outputs[0], outputs[-1]
    return Output(
        last.request_id,
        tuple(token_id for output in outputs for token_id in output.token_ids),
        last.finish_reason,
        last.stop_token_id,
        tuple(each for output in outputs for each in output.logprobs or ()) or None,
        num_cached_tokens=first.num_cached_tokens,
        scheduled_s=first.scheduled_s,
        prompt_logprobs=first.prompt_logprobs,
    )


def _since(end_s: float | None, start_s: float | None) -> float | None:
    return None if end_s is None or start_s is None else max(0.0, end_s - start_s)
