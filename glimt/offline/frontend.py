"""The client tower on one event loop: conversations and prompts in, whole answers out."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glimt.api.messages import check_media_counts, conversation_of
from glimt.api.params import (
    SamplingDefaults,
    adds_generation_prompt,
    sampling_params,
    template_kwargs,
    with_length,
)
from glimt.api.schema import ChatRequest
from glimt.api.tools import ToolSettings, call_rules, check_tools, tools_in_prompt, with_tools
from glimt.checkpoint import checkpoint_file
from glimt.errors import RequestError
from glimt.frontend.answer import Answer, Delta, TextOptions
from glimt.frontend.client import EngineClient
from glimt.frontend.prompt import MediaPreparer, Prompt
from glimt.frontend.reasoning import ReasoningTokens
from glimt.frontend.render import Renderer
from glimt.frontend.template import ChatTemplate
from glimt.frontend.tokenizer import Tokenizer
from glimt.metrics import Metrics
from glimt.offline.admission import Admission
from glimt.offline.messages import Picture
from glimt.offline.outputs import RequestOutput, completion_of
from glimt.processes.control import ServerStart


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to be answered: text or token ids, or None = the request's messages."""

    request: ChatRequest  # with a seed
    prompt: str | list[int] | None
    pictures: Mapping[str, Picture]  # by the addresses that the messages have for them


@dataclass(frozen=True, slots=True)
class Language:
    """What is read from the checkpoint to make prompts and read answers."""

    tokenizer: Tokenizer
    renderer: Renderer
    defaults: SamplingDefaults


def read_language(start: ServerStart) -> Language:
    """Raises BadCheckpoint and BadSettings."""
    tokenizer = Tokenizer(checkpoint_file(Path(start.model_path), "tokenizer.json"))
    template = ChatTemplate(start.chat_template)
    return Language(
        tokenizer,
        Renderer(tokenizer, template, start.image, start.max_model_len),
        SamplingDefaults.from_generation_config(start.generation_defaults),
    )


class OfflineFrontend:
    """Answers jobs through an engine's client. Made and used on one event loop."""

    def __init__(
        self,
        start: ServerStart,
        language: Language,
        client: EngineClient,
        metrics: Metrics,
        media: MediaPreparer,
    ) -> None:
        self._settings = start
        self._tokenizer = language.tokenizer
        self._renderer = language.renderer
        self._defaults = language.defaults
        self._client = client
        self._metrics = metrics
        self._media = media
        self._admission = Admission()
        # A program that gives tools needs no operator who allows them.
        self._tools = ToolSettings.of(
            language.tokenizer, start.tool_call_parser or "glm45", auto=True
        )

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
            prompt = await self._prompt(job)
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
        return Answer(
            self._client.generate(prompt, sampling, n=n),
            prompt,
            sampling,
            n=n,
            options=self._text_options(job),
            tokenizer=self._tokenizer,
            clock=time.monotonic,
            arrival_s=arrival_s,
            metrics=self._metrics,
        )

    async def _prompt(self, job: Job) -> Prompt:
        if job.prompt is not None:
            return await self._renderer.render_text(job.prompt)
        start, request = self._settings, job.request
        check_tools(request, self._tools)
        conversation = conversation_of(
            request.messages,
            template_kwargs=template_kwargs(start.chat_template_kwargs, request),
            add_generation_prompt=adds_generation_prompt(request),
            tools=tools_in_prompt(request, self._tools),
        )
        check_media_counts(conversation, max_images=start.max_images, max_videos=start.max_videos)
        return await self._renderer.render(conversation, self._media)

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
