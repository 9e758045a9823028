"""Requests of /v1/messages -> chat requests, and errors of these back to the fields that were sent.

There is one way from a conversation to a prompt, the chat request's. What a turn holds in one
list becomes the messages that templates know: results of tools are messages of their own, thoughts
and calls are fields of the assistant's.
"""

from glimt.api.anthropic_schema import (
    AnyChoice,
    AutoChoice,
    Base64Source,
    Block,
    ConversationFields,
    DocumentBlock,
    FileSource,
    ImageBlock,
    MessagesRequest,
    MessagesTool,
    NamedChoice,
    NoChoice,
    RedactedThinkingBlock,
    Source,
    TextBlock,
    ThinkingBlock,
    ThinkingOff,
    ThinkingOn,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
    VideoBlock,
)
from glimt.api.formats import JsonSchemaFormat, ResponseFormat
from glimt.api.messages import (
    FunctionCall,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    VideoPart,
)
from glimt.api.paths import Paths
from glimt.api.schema import ChatRequest
from glimt.api.tools import FunctionChoice, Tool, ToolChoice
from glimt.errors import InvalidRequest, Unsupported


def chat_request(
    request: ConversationFields, *, has_budget: bool = False
) -> tuple[ChatRequest, Paths]:
    """The chat request with the same meaning. Raises InvalidRequest, Unsupported.

    `has_budget`: this server can tell thoughts apart, and so bound them.
    """
    for name in ("mcp_servers", "container"):
        if getattr(request, name) is not None:
            raise Unsupported(f"{name} is not supported by this version", param=name)
    paths = Paths(
        {
            "stop": "stop_sequences",
            "tool_choice.function.name": "tool_choice.name",
            "thinking_token_budget": "thinking.budget_tokens",
            "reasoning_effort": "output_config.effort",
            "enable_thinking": "thinking",
        }
    )
    reader = _Turns(paths)
    reader.read_system(request.system)
    for index, turn in enumerate(request.messages):
        reader.read(turn, f"messages[{index}]")
    messages = reader.messages
    fields: dict[str, object] = {
        "messages": messages,
        "model": request.model,
        "tools": _tools(request.tools, paths) or None,
        "chat_template_kwargs": request.chat_template_kwargs,
        "mm_processor_kwargs": request.mm_processor_kwargs,
        "media_io_kwargs": request.media_io_kwargs,
        "continue_final_message": _is_begun(messages),
    }
    _add_choice(fields, request)
    _add_thinking(fields, request)
    _add_form(fields, request, paths)
    if not has_budget:
        fields.pop("thinking_token_budget", None)
    if isinstance(request, MessagesRequest):
        fields |= {
            "max_tokens": request.max_tokens,
            "stop": request.stop_sequences,
            "stream": request.stream,
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p or None,  # 0 is what some clients send for the default
            "seed": request.seed,
            "priority": request.priority,
            "cache_salt": request.cache_salt,
        }
    return ChatRequest(**fields), paths  # type: ignore[arg-type]


def without_effect(request: ConversationFields, *, has_budget: bool) -> list[str]:
    """Fields that say something which is not done here and does no harm."""
    thinking = request.thinking
    if not has_budget and isinstance(thinking, ThinkingOn) and thinking.budget_tokens is not None:
        return ["thinking.budget_tokens"]
    return []


def _is_begun(messages: list[Message]) -> bool:
    """The last turn is the beginning of the answer (a prefill)."""
    if not messages:
        raise InvalidRequest("messages: nobody says anything", param="messages")
    last = messages[-1]
    if last.role != "assistant":
        return False
    if last.tool_calls or not last.content:
        raise InvalidRequest(
            "messages: after a call its result has to come, and an answer is begun with text",
            param="messages",
        )
    return True


def _add_choice(fields: dict[str, object], request: ConversationFields) -> None:
    choice = request.tool_choice
    if choice is None:
        return
    if isinstance(choice, NoChoice):
        fields["tool_choice"] = "none"
        return
    if isinstance(choice, AutoChoice):
        fields["tool_choice"] = "auto"
    elif isinstance(choice, AnyChoice):
        fields["tool_choice"] = "required"
    elif isinstance(choice, NamedChoice):
        function = FunctionChoice(name=choice.name)
        fields["tool_choice"] = ToolChoice(type="function", function=function)
    if choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False


def _add_thinking(fields: dict[str, object], request: ConversationFields) -> None:
    thinking = request.thinking
    if isinstance(thinking, ThinkingOn):
        fields["enable_thinking"] = True
        fields["thinking_token_budget"] = thinking.budget_tokens
    elif isinstance(thinking, ThinkingOff):
        fields["enable_thinking"] = False
    if thinking is not None and getattr(thinking, "display", None) == "omitted":
        fields["include_reasoning"] = False
    if request.output_config is not None:
        fields["reasoning_effort"] = request.output_config.effort


def _add_form(fields: dict[str, object], request: ConversationFields, paths: Paths) -> None:
    config = request.output_config.format if request.output_config else None
    form = config or request.output_format
    if config is not None and request.output_format not in (None, config):
        raise InvalidRequest(
            "output_format is the older name of output_config.format; send one of them",
            param="output_format",
        )
    if form is None:
        return
    path = "output_format" if config is None else "output_config.format"
    paths.origins["response_format.json_schema"] = path
    schema = JsonSchemaFormat(schema=form.schema)
    fields["response_format"] = ResponseFormat(type="json_schema", json_schema=schema)


def _tools(tools: list[MessagesTool] | None, paths: Paths) -> list[Tool]:
    made = []
    for index, tool in enumerate(tools or ()):
        path = f"tools[{index}]"
        if tool.type not in (None, "custom"):
            raise Unsupported(
                f"{path} is not a function of the client's: only type custom is supported",
                param=f"{path}.type",
            )
        if tool.input_schema is None:
            param = f"{path}.input_schema"
            raise InvalidRequest(f"{param} is missing", param=param)
        paths.origins[f"{path}.function"] = path
        paths.origins[f"{path}.function.parameters"] = f"{path}.input_schema"
        made.append(Tool.of(tool.name, tool.description, tool.input_schema, tool.strict))
    return made


class _Turns:
    """Turns -> messages, in order."""

    def __init__(self, paths: Paths) -> None:
        self.messages: list[Message] = []
        self._paths = paths
        # Of the user's message in the making, each with its path: what came with results of tools
        # (templates expect only text in these, so it stands right behind them), then its own.
        self._with_results: list[tuple[Part, str]] = []
        self._own: list[tuple[Part, str]] = []

    def read_system(self, system: str | list[Block] | None) -> None:
        """The text above all turns."""
        text = system if isinstance(system, str) else ""
        if isinstance(system, list):
            texts = [block for block in system if isinstance(block, TextBlock)]
            for index, block in enumerate(system):
                if not isinstance(block, TextBlock):
                    _refuse(block, f"system[{index}]")
            text = _joined(texts)
        if text:
            self._add(Message(role="system", content=text), "system")

    def read(self, turn: Turn, path: str) -> None:
        """One turn."""
        if isinstance(turn.content, str):
            self._add(Message(role=turn.role, content=turn.content), path)
        elif turn.role == "assistant":
            self._read_answer(turn.content, path)
        else:
            for index, block in enumerate(turn.content):
                self._read_block(block, f"{path}.content[{index}]", turn.role)
            self._flush(turn.role, path)

    def _add(self, message: Message, origin: str) -> None:
        self._paths.origins[f"messages[{len(self.messages)}]"] = origin
        self.messages.append(message)

    def _flush(self, role: str, origin: str) -> None:
        parts = self._with_results + self._own
        self._with_results, self._own = [], []
        if not parts:
            return
        place = f"messages[{len(self.messages)}]"
        for index, (part, path) in enumerate(parts):
            self._paths.origins[f"{place}.content[{index}]"] = path
            if isinstance(part, ImagePart | VideoPart):
                kind = "image_url" if isinstance(part, ImagePart) else "video_url"
                self._paths.origins[f"{place}.content[{index}].{kind}"] = f"{path}.source"
        content = [part for part, _ in parts]
        self._add(Message(role="system" if role == "system" else "user", content=content), origin)

    def _read_block(self, block: Block, path: str, role: str) -> None:
        if isinstance(block, TextBlock | ImageBlock | VideoBlock):
            self._own.append((_part(block, path), path))
        elif isinstance(block, ToolResultBlock) and role == "user":
            if self._own:
                self._flush(role, path)
            self._read_result(block, path)
        else:
            _refuse(block, path)

    def _read_result(self, block: ToolResultBlock, path: str) -> None:
        content = block.content
        if isinstance(content, str):
            text = content
        else:
            text = _joined([each for each in content if isinstance(each, TextBlock)])
            for index, each in enumerate(content):
                if not isinstance(each, TextBlock):
                    where = f"{path}.content[{index}]"
                    self._with_results.append((_part(each, where), where))
        if block.is_error and not text.lower().startswith("error"):
            text = f"Error: {text}"
        self._add(Message(role="tool", content=text, tool_call_id=block.tool_use_id), path)

    def _read_answer(self, blocks: list[Block], path: str) -> None:
        thoughts: list[str] = []
        texts: list[str] = []
        calls: list[ToolCall] = []
        for index, block in enumerate(blocks):
            if isinstance(block, ThinkingBlock):
                thoughts.append(block.thinking)
            elif isinstance(block, TextBlock):
                texts.append(block.text)
            elif isinstance(block, ToolUseBlock):
                function = FunctionCall(name=block.name, arguments=block.input)
                calls.append(ToolCall(id=block.id, function=function))
            elif not isinstance(block, RedactedThinkingBlock):
                _refuse(block, f"{path}.content[{index}]")
        message = Message(
            role="assistant",
            content="".join(texts) or None,
            reasoning="\n".join(thoughts) or None,
            tool_calls=calls or None,
        )
        self._add(message, path)


def _part(block: TextBlock | ImageBlock | VideoBlock, path: str) -> Part:
    if isinstance(block, TextBlock):
        return TextPart(text=block.text)
    url = _address(block.source, f"{path}.source")
    return ImagePart(image_url=url) if isinstance(block, ImageBlock) else VideoPart(video_url=url)


def _address(source: Source, path: str) -> str:
    if isinstance(source, FileSource):
        raise Unsupported(
            f"{path}: there are no uploaded files here; send url or base64", param=path
        )
    if isinstance(source, Base64Source):
        return f"data:{source.media_type};base64,{source.data}"
    return source.url


def _refuse(block: Block, path: str) -> None:
    if isinstance(block, DocumentBlock):
        raise Unsupported(f"{path}: documents are not supported", param=path)
    raise InvalidRequest(f"{path} is not a block that this role has", param=path)


def _joined(blocks: list[TextBlock]) -> str:
    """Texts that stand in separate blocks are separate paragraphs."""
    return "\n\n".join(block.text for block in blocks)
