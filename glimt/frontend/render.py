"""Conversations, texts and token ids become prompts: tokens, positions, images in their places.

    messages ─messages.py▶ ─standins.py▶ ─template.py▶ text ─tokenizer.py▶ tokens with placeholders
    media ─prepare.py▶ pixels ─placeholders.py▶ tokens ─positions.py▶ Prompt

All that can be refused by looking at the text alone is refused before any medium is fetched.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from glimt.errors import InvalidRequest, PromptTooLong
from glimt.frontend.messages import (
    flat_messages,
    hide_messages,
    listed_messages,
    media_kinds,
    template_messages,
)
from glimt.frontend.placeholders import Placeholders
from glimt.frontend.positions import mrope_positions
from glimt.frontend.prepare import prepare_all
from glimt.frontend.prompt import Conversation, MediaPreparer, PreparedMedia, Prompt
from glimt.frontend.standins import StandIns, guarded_characters, strings_in
from glimt.frontend.template import (
    ChatTemplate,
    ContentFormat,
    check_template_kwargs,
    compile_request_template,
)
from glimt.frontend.tokenizer import Tokenizer
from glimt.wire import ImageSettings

# Text that can hardly fit is refused before work is spent on it: tokens are about 4 bytes long.
_MAX_BYTES_PER_TOKEN = 16
# Encoding takes about a microsecond a character; more than this would hold up the event loop.
_INLINE_CHARS = 16_384


class Renderer:
    """Makes prompts for one checkpoint; `max_model_len` counts prompt and answer together."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        image: ImageSettings,
        max_model_len: int,
        content_format: ContentFormat = "auto",
    ) -> None:
        """`template` None: the checkpoint has none, so conversations are refused.
        `content_format`: how messages reach templates.

        Raises BadCheckpoint if the tokenizer lacks a token that prompts are built of.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._max_model_len = max_model_len
        self._content_format = content_format
        self._merge_size = image.merge_size
        self._placeholders = Placeholders(tokenizer, image.merge_size)
        self._guarded = guarded_characters(tokenizer.control_tokens)
        start = [tokenizer.token_id(text) for text in ("[gMASK]", "<sop>")]
        # What a bare text begins with, as all that the family was trained on.
        self.text_start = tuple(token_id for token_id in start if token_id is not None)
        self._answer_tags = tokenizer.token_id("<answer>") is not None

    @property
    def variables(self) -> frozenset[str]:
        """What the checkpoint's template reads of a request."""
        return frozenset() if self._template is None else self._template.variables

    async def render(
        self,
        conversation: Conversation,
        media: MediaPreparer,
        *,
        cache_salt: bytes = b"",
        max_tokens: int | None = None,
    ) -> Prompt:
        """The prompt of a conversation; the caller owns its leases. Of a longer text without media
        the last `max_tokens` tokens are taken.

        Raises InvalidRequest (messages that the template cannot render, template_kwargs),
        PromptTooLong, and what `media.prepare` raises. No lease survives failure or cancellation.
        """
        self._check_size(
            strings_in(
                [
                    *conversation.messages,
                    *(conversation.tools or ()),
                    dict(conversation.template_kwargs),
                ]
            ),
            "messages",
        )
        text, stand_ins = self._run_template(conversation)
        token_ids = await _off_loop_if_long(
            text, lambda: self._tokenizer.encode_template(text, stand_ins.show)
        )
        self._check_placeholders(token_ids, conversation)
        if max_tokens is not None and len(token_ids) > max_tokens:
            if conversation.media:
                raise InvalidRequest(
                    "truncate_prompt_tokens cannot cut a prompt with images or videos",
                    param="truncate_prompt_tokens",
                )
            token_ids = token_ids[-max_tokens:]
        self._check_length(len(token_ids), 0, "messages")
        prepared = await prepare_all(conversation.media, media)
        try:
            return self._assemble(token_ids, prepared, cache_salt)
        except BaseException:
            for medium in prepared:
                medium.lease.release()
            raise

    async def render_text(
        self,
        prompt: str | Sequence[int],
        *,
        add_special_tokens: bool = True,
        max_tokens: int | None = None,
    ) -> Prompt:
        """The prompt of a bare text, or of token ids that the client chose itself; of a longer one
        the last `max_tokens` tokens.

        `add_special_tokens`: a text begins with `[gMASK]<sop>`, as all that the family was trained
        on. Raises InvalidRequest for no tokens or ids out of range, PromptTooLong.
        """
        if isinstance(prompt, str):
            token_ids = await self.tokenize(prompt, add_special_tokens=add_special_tokens)
        else:
            token_ids = list(prompt)
            limit = self._tokenizer.vocab_size - 1
            if token_ids and not 0 <= min(token_ids) <= max(token_ids) <= limit:
                raise InvalidRequest(f"token ids must lie in 0 … {limit}", param="prompt")
        if not token_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if max_tokens is not None:
            token_ids = token_ids[-max_tokens:]
        self._check_length(len(token_ids), 0, "prompt")
        return Prompt(token_ids=np.array(token_ids, np.int32))

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a bare text; how many they are does not matter.

        Raises PromptTooLong for a text that can never be a prompt, InvalidRequest for one that is
        not Unicode.
        """
        self._check_size([text], "prompt")
        token_ids = await _off_loop_if_long(text, lambda: self._tokenizer.encode_text(text))
        return [*self.text_start, *token_ids] if add_special_tokens else token_ids

    def _run_template(self, conversation: Conversation) -> tuple[str, StandIns]:
        """The rendered text, with stand-ins in it, and the way back."""
        template = self._template
        if conversation.template is not None:
            template = compile_request_template(conversation.template)
        if template is None:
            raise InvalidRequest("this checkpoint has no chat template", param="messages")
        kwargs = check_template_kwargs(conversation.template_kwargs, template.own_arguments)
        messages = template_messages(conversation.messages, answer_tags=self._answer_tags)
        if media_kinds(messages) != [source.kind for source in conversation.media]:
            raise InvalidRequest("the messages and the media given do not match", param="messages")
        tools = list(conversation.tools or ())
        if tools and not template.takes_tools:
            raise InvalidRequest("this checkpoint's chat template takes no tools", param="tools")
        texts = strings_in([messages, tools, kwargs])
        stand_ins = StandIns(self._guarded, [template.source, *texts])
        hidden = hide_messages(messages, stand_ins)
        if not template.takes_lists(self._content_format):
            hidden = flat_messages(hidden)
        elif not template.takes_texts(self._content_format):
            hidden = listed_messages(hidden)
        try:
            text = template.render(
                hidden,
                tools=stand_ins.hide(tools),
                add_generation_prompt=conversation.add_generation_prompt,
                **{name: stand_ins.hide(value) for name, value in kwargs.items()},
            )
        except InvalidRequest as error:
            raise InvalidRequest(stand_ins.show(error.message), param=error.param) from error
        if conversation.continue_final:
            text = _up_to_final(text, hidden)
        return text, stand_ins

    def _assemble(
        self, template_ids: Sequence[int], prepared: Sequence[PreparedMedia], salt: bytes
    ) -> Prompt:
        token_ids, images = self._placeholders.expand(template_ids, prepared, salt)
        num_media_tokens = sum(image.num_tokens for image in images)
        self._check_length(len(token_ids), num_media_tokens, "messages")
        positions, rope_delta = mrope_positions(len(token_ids), images, self._merge_size)
        return Prompt(
            token_ids=np.array(token_ids, np.int32),
            positions=positions,
            rope_delta=rope_delta,
            images=tuple(images),
            leases=tuple(medium.lease for medium in prepared),
        )

    def _check_size(self, texts: Iterable[str], param: str) -> None:
        limit = _MAX_BYTES_PER_TOKEN * self._max_model_len
        num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if num_bytes > limit:
            raise PromptTooLong(
                f"the prompt's text has {num_bytes:,} bytes; for a context of "
                f"{self._max_model_len:,} tokens at most {limit:,} are accepted",
                param=param,
            )

    def _check_length(self, num_tokens: int, num_media_tokens: int, param: str) -> None:
        if num_tokens >= self._max_model_len:
            media = f" ({num_media_tokens:,} of them of media)" if num_media_tokens else ""
            raise PromptTooLong(
                f"the prompt has {num_tokens:,} tokens{media}; the context of "
                f"{self._max_model_len:,} tokens must hold the prompt and at least one token more",
                param=param,
            )

    def _check_placeholders(self, token_ids: Sequence[int], conversation: Conversation) -> None:
        """Each medium has exactly one place, in the order given: the template may differ."""
        placed = self._placeholders.kinds(token_ids)
        if placed != [source.kind for source in conversation.media]:
            raise InvalidRequest(
                f"the chat template made {len(placed)} places for the {len(conversation.media)} "
                "images and videos: it does not take them in such messages",
                param="messages",
            )


def _up_to_final(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """The rendered text without what the template puts behind the last message's content."""
    content = messages[-1]["content"] if messages else None
    if not isinstance(content, str) or not content.strip():
        raise InvalidRequest(
            "continue_final_message needs a last message with text", param="continue_final_message"
        )
    place = text.rfind(content.strip())
    if place < 0:
        raise InvalidRequest(
            "the chat template does not show the last message as it is, so it cannot be continued",
            param="continue_final_message",
        )
    # Templates may trim a message; what they leave of it is kept.
    whole = content.lstrip()
    end = whole if text.startswith(whole, place) else content.strip()
    return text[: place + len(end)]


async def _off_loop_if_long(text: str, encode: Callable[[], list[int]]) -> list[int]:
    return encode() if len(text) <= _INLINE_CHARS else await asyncio.to_thread(encode)
