"""Jobs -> prompts: what the checkpoint's template, tokenizer and preprocessor make of a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glimt.api.messages import check_media_counts, conversation_of
from glimt.api.params import SamplingDefaults, adds_generation_prompt, template_kwargs
from glimt.api.schema import ChatRequest
from glimt.api.tools import ToolSettings, tools_in_prompt
from glimt.checkpoint import checkpoint_file
from glimt.frontend.prompt import MediaPreparer, Prompt
from glimt.frontend.render import Renderer
from glimt.frontend.template import ChatTemplate
from glimt.frontend.tokenizer import Tokenizer
from glimt.offline.messages import Picture
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
    tools: ToolSettings


def read_language(start: ServerStart) -> Language:
    """Raises BadCheckpoint and BadSettings."""
    tokenizer = Tokenizer(checkpoint_file(Path(start.model_path), "tokenizer.json"))
    template = ChatTemplate(start.chat_template)
    return Language(
        tokenizer,
        Renderer(tokenizer, template, start.image, start.max_model_len, start.content_format),
        SamplingDefaults.from_generation_config(start.generation_defaults),
        # A program that gives tools needs no operator who allows them.
        ToolSettings.of(
            tokenizer,
            start.tool_call_parser or "glm45",
            auto=True,
            strict_level=start.tool_strict_level,
        ),
    )


class PromptMaker:
    """Makes prompts for one checkpoint; `media` fetches and prepares what they name."""

    def __init__(self, start: ServerStart, language: Language, media: MediaPreparer) -> None:
        self._settings = start
        self._language = language
        self._media = media

    async def prompt(self, job: Job) -> Prompt:
        """The caller owns its leases. Raises RequestError naming the field."""
        renderer, tools = self._language.renderer, self._language.tools
        if job.prompt is not None:
            return await renderer.render_text(job.prompt)
        start, request = self._settings, job.request
        conversation = conversation_of(
            request.messages,
            template_kwargs=template_kwargs(start.chat_template_kwargs, request),
            add_generation_prompt=adds_generation_prompt(request),
            tools=tools_in_prompt(request, tools),
        )
        check_media_counts(conversation, max_images=start.max_images, max_videos=start.max_videos)
        return await renderer.render(conversation, self._media)
