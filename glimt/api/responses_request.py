"""Requests of /v1/responses -> chat requests; there is one way from a conversation to a prompt.

What one answer gave comes back as several items (thoughts, text, calls): together they are one
message of the assistant's, as templates know it.
"""

from typing import Any

from glimt.api.fields import SamplingFields
from glimt.api.formats import JsonSchemaFormat, ResponseFormat
from glimt.api.messages import (
    FunctionCall,
    ImagePart,
    Message,
    Part,
    RefusalPart,
    TextPart,
    ToolCall,
    VideoPart,
)
from glimt.api.paths import Paths
from glimt.api.responses_schema import (
    InputFile,
    InputImage,
    InputItem,
    InputPart,
    InputVideo,
    Refusal,
    ResponsesChoice,
    ResponsesRequest,
    ResponsesTool,
)
from glimt.api.schema import ChatRequest
from glimt.api.tools import FunctionChoice, Tool, ToolChoice
from glimt.errors import InvalidRequest, Unsupported

# The fields that a chat request has under the same names.
_SAME = (
    *SamplingFields.__struct_fields__,
    "parallel_tool_calls",
    "include_reasoning",
    "thinking_token_budget",
    "enable_thinking",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "media_io_kwargs",
)


def chat_request(request: ResponsesRequest) -> tuple[ChatRequest, Paths]:
    """The chat request with the same meaning. Raises InvalidRequest, Unsupported."""
    paths = Paths(
        {
            "messages": "input",
            "max_tokens": "max_output_tokens",
            "tool_choice.function.name": "tool_choice.name",
            "reasoning_effort": "reasoning.effort",
            "response_format": "text.format",
            "response_format.json_schema": "text.format",
        }
    )
    items = _Items(paths)
    if request.instructions:
        items.add(Message(role="system", content=request.instructions), "instructions")
    if isinstance(request.input, str):
        items.add(Message(role="user", content=request.input), "input")
    else:
        for index, item in enumerate(request.input):
            items.read(item, f"input[{index}]")
        items.end_answer()
    if not items.messages:
        raise InvalidRequest("input: nobody says anything", param="input")
    choice: Any = request.tool_choice
    if isinstance(choice, ResponsesChoice):
        choice = ToolChoice(type="function", function=FunctionChoice(name=choice.name))
    tools = _tools(request.tools or [], paths)
    chat = ChatRequest(
        **{name: getattr(request, name) for name in _SAME},
        messages=items.messages,
        max_tokens=request.max_output_tokens,
        logprobs=wants_logprobs(request),
        top_logprobs=request.top_logprobs if wants_logprobs(request) else None,
        tools=tools or None,
        tool_choice=choice,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
        response_format=_format(request),
    )
    return chat, paths


def wants_logprobs(request: ResponsesRequest) -> bool:
    """They are given where they are asked for by name, or with a number of alternatives."""
    return bool(request.top_logprobs) or "message.output_text.logprobs" in (request.include or ())


def _format(request: ResponsesRequest) -> ResponseFormat | None:
    """text.format as a chat request has it: its schema is one level deeper there."""
    form = request.text.format if request.text else None
    if form is None:
        return None
    if form.type != "json_schema":
        return ResponseFormat(type=form.type)
    if form.schema is None:
        raise InvalidRequest("text.format.schema is missing", param="text.format.schema")
    schema = JsonSchemaFormat(
        schema=form.schema, name=form.name, description=form.description, strict=form.strict
    )
    return ResponseFormat(type="json_schema", json_schema=schema)


def _tools(tools: list[ResponsesTool], paths: Paths) -> list[Tool]:
    made = []
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if tool.type != "function":
            raise Unsupported(
                f"{path} is not a function of the client's: only type function is supported",
                param=f"{path}.type",
            )
        if tool.name is None:
            raise InvalidRequest(f"{path}.name is missing", param=f"{path}.name")
        paths.origins[f"{path}.function"] = path
        made.append(Tool.of(tool.name, tool.description, tool.parameters, tool.strict))
    return made


class _Items:
    """Items -> messages, in order."""

    def __init__(self, paths: Paths) -> None:
        self.messages: list[Message] = []
        self._paths = paths
        # The assistant's message in the making, and media that came with results of tools:
        # templates expect only text in these, so media stand in a user's message right behind.
        self._thoughts: list[str] = []
        self._text: str | None = None
        self._calls: list[ToolCall] = []
        self._origin = ""
        self._media: list[tuple[Part, str]] = []

    def add(self, message: Message, origin: str) -> None:
        """One more message, made from the item at `origin`."""
        self._paths.origins[f"messages[{len(self.messages)}]"] = origin
        self.messages.append(message)

    def read(self, item: InputItem, path: str) -> None:
        """One item."""
        if item.type == "message":
            self._read_message(item, path)
        elif item.type == "reasoning":
            self._begin_answer(path, after_text=True)
            parts = item.content if isinstance(item.content, list) else item.summary or []
            self._thoughts += [_text_of(part, path) for part in parts]
        elif item.type == "function_call":
            self._read_call(item, path)
        elif item.type == "function_call_output":
            self._read_result(item, path)
        else:
            raise Unsupported(
                f"{path}.type is not supported; message, reasoning, function_call and "
                "function_call_output are",
                param=f"{path}.type",
            )

    def end_answer(self) -> None:
        """What comes next is not of the same answer of the assistant's."""
        if self._media:
            parts, self._media = self._media, []
            self._add_parts("user", parts, self._origin)
        if self._thoughts or self._text is not None or self._calls:
            message = Message(
                role="assistant",
                content=self._text,
                reasoning="\n".join(self._thoughts) or None,
                tool_calls=self._calls or None,
            )
            self.add(message, self._origin)
            self._thoughts, self._text, self._calls = [], None, []

    def _begin_answer(self, path: str, *, after_text: bool) -> None:
        """Thoughts and text begin another answer where one has text or calls already."""
        if self._media or self._calls or (after_text and self._text is not None):
            self.end_answer()
        self._origin = path

    def _read_message(self, item: InputItem, path: str) -> None:
        if item.role is None or item.content is None:
            missing = "role" if item.role is None else "content"
            raise InvalidRequest(f"{path}.{missing} is missing", param=f"{path}.{missing}")
        if item.role == "assistant":
            self._begin_answer(path, after_text=True)
            content = item.content
            if not isinstance(content, str):
                content = "".join(_text_of(part, path) for part in content)
            self._text = content
            return
        media, self._media = self._media, []
        self.end_answer()
        if isinstance(item.content, str) and not media:
            self.add(Message(role=item.role, content=item.content), path)
            return
        if isinstance(item.content, str):
            own: list[tuple[Part, str]] = [(TextPart(text=item.content), f"{path}.content")]
        else:
            own = [
                (_part(part, f"{path}.content[{index}]"), f"{path}.content[{index}]")
                for index, part in enumerate(item.content)
            ]
        self._add_parts(item.role, media + own, path)

    def _add_parts(self, role: str, parts: list[tuple[Part, str]], origin: str) -> None:
        for index, (_, path) in enumerate(parts):
            place = f"messages[{len(self.messages)}].content[{index}]"
            self._paths.origins[place] = path
        content = [part for part, _ in parts]
        if role == "user":
            self.add(Message(role="user", content=content), origin)
        else:
            self.add(Message(role="system", content=content), origin)

    def _read_call(self, item: InputItem, path: str) -> None:
        if item.name is None or item.call_id is None:
            missing = "name" if item.name is None else "call_id"
            raise InvalidRequest(f"{path}.{missing} is missing", param=f"{path}.{missing}")
        if self._media:
            self.end_answer()
        self._origin = path
        place = f"messages[{len(self.messages)}].tool_calls[{len(self._calls)}].function"
        self._paths.origins[place] = path
        function = FunctionCall(name=item.name, arguments=item.arguments)
        self._calls.append(ToolCall(id=item.call_id, function=function))

    def _read_result(self, item: InputItem, path: str) -> None:
        if item.output is None or item.call_id is None:
            missing = "output" if item.output is None else "call_id"
            raise InvalidRequest(f"{path}.{missing} is missing", param=f"{path}.{missing}")
        media, self._media = self._media, []
        self.end_answer()
        self._media, self._origin = media, path
        text = item.output
        if not isinstance(text, str):
            texts = []
            for index, part in enumerate(text):
                where = f"{path}.output[{index}]"
                if isinstance(part, InputImage | InputVideo):
                    self._media.append((_part(part, where), where))
                else:
                    texts.append(_text_of(part, where))
            text = "".join(texts)
        self.add(Message(role="tool", content=text, tool_call_id=item.call_id), path)


def _text_of(part: InputPart, path: str) -> str:
    if isinstance(part, InputImage | InputVideo | InputFile):
        raise InvalidRequest(f"{path} may hold text only", param=path)
    return part.refusal if isinstance(part, Refusal) else part.text


def _part(part: InputPart, path: str) -> Part:
    if isinstance(part, InputFile):
        raise Unsupported(f"{path}: files are not supported", param=path)
    if isinstance(part, InputVideo):
        return VideoPart(video_url=part.video_url)
    if isinstance(part, InputImage):
        if part.image_url is None:
            raise Unsupported(
                f"{path}: there are no uploaded files here; send image_url", param=path
            )
        return ImagePart(image_url=part.image_url)
    return (
        RefusalPart(refusal=part.refusal) if isinstance(part, Refusal) else TextPart(text=part.text)
    )
