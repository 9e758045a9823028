"""The client tower on one event loop: conversations and prompts in, whole answers out."""

import secrets
import time

from msgspec.structs import replace

from glimt.api.answer_grammar import answer_grammar
from glimt.api.params import check_budget, sampling_params, with_length
from glimt.api.tools import call_rules, check_tools, with_tools
from glimt.errors import RequestError
from glimt.frontend.answer import Answer, Delta, TextOptions
from glimt.frontend.client import EngineClient
from glimt.frontend.grammars import GrammarChecker
from glimt.frontend.prompt import MediaPreparer
from glimt.frontend.reasoning import ReasoningTokens
from glimt.frontend.thoughts import with_thoughts
from glimt.metrics import Metrics
from glimt.offline.admission import Admission
from glimt.offline.outputs import RequestOutput, completion_of
from glimt.offline.prompts import Job, Language, PromptMaker
from glimt.processes.control import ServerStart


class OfflineFrontend:
    """Answers jobs through an engine's client. Made and used on one event loop."""

    def __init__(
        self,
        start: ServerStart,
        language: Language,
        client: EngineClient,
        metrics: Metrics,
        media: MediaPreparer,
        grammars: GrammarChecker,
    ) -> None:
        self._settings = start
        self._tokenizer = language.tokenizer
        self._defaults = language.defaults
        self._grammars = grammars
        self._client = client
        self._metrics = metrics
        self._tools = language.tools
        self._prompts = PromptMaker(start, language, media)
        self._admission = Admission()

    async def answer(self, job: Job) -> RequestOutput:
        """The whole answer. Raises typed errors; a cancelled call ends its generation."""
        answer = await self._admission.enter(lambda: self._begin(job))
        deltas: list[Delta] = []
        try:
            while new := await answer.receive():
                deltas += new
        finally:
            answer.close()
            self._admission.leave()
        return RequestOutput(
            prompt=job.prompt if isinstance(job.prompt, str) else None,
            prompt_token_ids=answer.prompt.token_ids.tolist(),
            outputs=[
                completion_of(
                    index,
                    [delta for delta in deltas if delta.choice == index],
                    self._tokenizer,
                    with_logprobs=bool(job.request.logprobs),
                )
                for index in range(job.request.n or 1)
            ],
            usage=answer.usage,
        )

    async def _begin(self, job: Job) -> Answer:
        request = job.request
        n = request.n or 1
        arrival_s = time.monotonic()
        with self._client.preparing(n):
            info = self._client.info
            sampling = sampling_params(
                request,
                self._defaults,
                info,
                fresh_seed=lambda: 0,  # never asked: jobs have a seed
                encode=self._tokenizer.encode_text,
            )
            sampling = with_tools(sampling, request, self._tools)
            check_tools(request, self._tools)
            check_budget(request, parses=self._settings.reasoning_parser is not None)
            grammar = await answer_grammar(request, self._tools, self._grammars)
            if grammar is not None:
                sampling = replace(sampling, grammar=grammar)
            prompt = await self._prompts.prompt(job)
        try:
            sampling = with_length(
                sampling,
                request,
                self._defaults,
                num_prompt_tokens=prompt.num_tokens,
                max_model_len=info.max_model_len,
            )
        except RequestError:
            prompt.release()
            raise
        options = self._text_options(job)
        if options.reasoning is not None:
            sampling = with_thoughts(
                sampling,
                options.reasoning,
                self._tokenizer,
                prompt.token_ids,
                budget=request.thinking_token_budget,
            )
        return Answer(
            self._client.generate(prompt, sampling, n=n),
            prompt,
            sampling,
            n=n,
            options=options,
            tokenizer=self._tokenizer,
            clock=time.monotonic,
            arrival_s=arrival_s,
            metrics=self._metrics,
        )

    def _text_options(self, job: Job) -> TextOptions:
        request = job.request
        stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
        has_thoughts = self._settings.reasoning_parser is not None and job.prompt is None
        return TextOptions(
            stop=tuple(stop),
            include_stop=request.include_stop_str_in_output,
            skip_special_tokens=request.skip_special_tokens,
            reasoning=ReasoningTokens.of(self._tokenizer) if has_thoughts else None,
            boxes=self._settings.box_tokens,
            calls=call_rules(request, self._tools, lambda: f"call_{secrets.token_hex(12)}"),
        )
