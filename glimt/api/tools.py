"""The tools of a chat request: what they may look like, who may choose them, and what comes of it.

tool_choice   none      no call: the model cannot even begin one
              auto      the model decides (the default where there are tools)
              required  calls, and nothing else but thoughts
              a name    one call of this function

The last two, and calls of `strict` functions, are enforced by a grammar (`answer_grammar.py`); of
all others that the model may make, as much as the operator's strict level says:

strict level  auto       nothing
              function   the form of calls, names of functions and of arguments
              parameter  the schemas, as if each function were `strict`
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from glimt.errors import InvalidRequest, Unsupported
from glimt.frontend.argument_types import ANY, ArgumentTypes
from glimt.frontend.call_grammar import CallForm
from glimt.frontend.tokenizer import Tokenizer
from glimt.frontend.tool_calls import CallRules, CallTokens
from glimt.wire import SamplingParams

# Thoughts as well: where they are not parsed, they are text.
_TEXT_MARKS = ("<|begin_of_box|>", "<|end_of_box|>", "<think>", "</think>")
StrictLevel = Literal["auto", "function", "parameter"]
MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 32 * 2**10
MAX_SCHEMA_BYTES = 64 * 2**10  # as JSON, of one function's parameters
MAX_SCHEMAS_BYTES = 256 * 2**10  # of all together
MAX_SCHEMA_DEPTH = 32
MAX_ENUM_VALUES = 2000

# `$` alone would let a line end through.
FunctionName = Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,64}$(?!\\n)")]


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call; `parameters` is the JSON schema of its arguments object."""

    name: FunctionName
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """Something the model may use."""

    type: Literal["function"]
    function: FunctionSpec

    @classmethod
    def of(
        cls,
        name: str,
        description: str | None,
        parameters: dict[str, Any] | None,
        strict: bool | None,
    ) -> "Tool":
        """From the words that every API has for a function."""
        function = FunctionSpec(
            name=name, description=description, parameters=parameters, strict=strict
        )
        return cls(type="function", function=function)


class FunctionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The name of a function."""

    name: FunctionName


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one function that is to be called."""

    type: Literal["function"]
    function: FunctionChoice


class ToolFields(Protocol):
    """The fields of a request that this is about."""

    @property
    def tools(self) -> list[Tool] | None:
        """Given with the request."""

    @property
    def tool_choice(self) -> Literal["none", "auto", "required"] | ToolChoice | None:
        """None = auto where there are tools."""

    @property
    def parallel_tool_calls(self) -> bool | None:
        """False = at most one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSettings:
    """What the operator allows."""

    parser: CallForm | None = None  # None: calls are not parsed
    auto: bool = False  # the model may choose
    hide_when_none: bool = False  # tools that must not be called are not in the prompt
    strict_level: StrictLevel = "function"
    tokens: CallTokens | None = None  # None: the checkpoint cannot write calls
    marks: tuple[str, ...] = ()  # control tokens that stand in texts between calls

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        parser: CallForm | None,
        *,
        auto: bool,
        hide_when_none: bool = False,
        strict_level: StrictLevel = "function",
    ) -> "ToolSettings":
        """The tokens looked up."""
        return cls(
            parser=parser,
            auto=auto,
            hide_when_none=hide_when_none,
            strict_level=strict_level,
            tokens=CallTokens.of(tokenizer),
            marks=tuple(mark for mark in _TEXT_MARKS if tokenizer.token_id(mark) is not None),
        )


def check_tools(request: ToolFields, settings: ToolSettings) -> None:
    """Raises InvalidRequest or Unsupported for tools or a choice that cannot be."""
    choice = request.tool_choice
    if not request.tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice needs tools", param="tool_choice")
        return
    check_specs(request.tools)
    names = {tool.function.name for tool in request.tools}
    if isinstance(choice, ToolChoice) and choice.function.name not in names:
        raise InvalidRequest(
            "tool_choice names a function that is not among the tools",
            param="tool_choice.function.name",
        )
    if choice == "none":
        return
    if settings.tokens is None:
        raise Unsupported("this checkpoint has no tokens for tool calls", param="tools")
    if choice in (None, "auto"):
        if settings.parser is None or not settings.auto:
            raise Unsupported(
                "tools with tool_choice auto need a server started with "
                "--enable-auto-tool-choice and --tool-call-parser (glm45 or glm47)",
                param="tool_choice",
            )
    elif settings.parser is None:
        raise Unsupported(
            "tool_choice needs a server started with --tool-call-parser (glm45 or glm47)",
            param="tool_choice",
        )


def tools_in_prompt(
    request: ToolFields, settings: ToolSettings
) -> tuple[dict[str, Any], ...] | None:
    """The tools as templates print them: as they were given, without what is not the model's."""
    if not request.tools or (request.tool_choice == "none" and settings.hide_when_none):
        return None
    return tuple(_shown(tool.function) for tool in request.tools)


def call_rules(
    request: ToolFields, settings: ToolSettings, new_id: Callable[[], str]
) -> CallRules | None:
    """How calls are read out of the answer; None if there are to be none."""
    if not request.tools or request.tool_choice == "none" or settings.tokens is None:
        return None
    return CallRules(
        tokens=settings.tokens,
        tools={
            tool.function.name: ArgumentTypes(tool.function.parameters) for tool in request.tools
        },
        new_id=new_id,
        only_one=request.parallel_tool_calls is False,
    )


def with_tools(
    sampling: SamplingParams, request: ToolFields, settings: ToolSettings
) -> SamplingParams:
    """Keep the answer from calling tools that it sees and is not to call."""
    if not request.tools or request.tool_choice != "none" or settings.tokens is None:
        return sampling
    words = (*sampling.bad_words, (settings.tokens.begin,))
    return msgspec.structs.replace(sampling, bad_words=words)


def _shown(function: FunctionSpec) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        shown["description"] = function.description
    if function.parameters is not None:
        shown["parameters"] = function.parameters
    return {"type": "function", "function": shown}


def check_specs(tools: list[Tool]) -> None:
    """Raises InvalidRequest naming the part of a tool that cannot be."""
    num_bytes = 0
    names: set[str] = set()
    for index, tool in enumerate(tools):
        path = f"tools[{index}].function"
        if tool.function.name in names:
            raise InvalidRequest(f"{path}.name is used twice", param=f"{path}.name")
        names.add(tool.function.name)
        if tool.function.parameters is None:
            continue
        path += ".parameters"
        size = len(msgspec.json.encode(tool.function.parameters))
        num_bytes += size
        if size > MAX_SCHEMA_BYTES or num_bytes > MAX_SCHEMAS_BYTES:
            raise InvalidRequest(
                f"{path} is too large: {MAX_SCHEMA_BYTES:,} bytes of JSON are allowed, and "
                f"{MAX_SCHEMAS_BYTES:,} for all tools together",
                param=path,
            )
        if tool.function.parameters.get("type", "object") != "object":
            raise InvalidRequest(f"{path}.type must be object", param=f"{path}.type")
        _check_schema(tool.function.parameters, path, 0)


def _check_schema(schema: Any, path: str, depth: int) -> None:
    """The parts of a schema by which values are typed; what else it says is for the model."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"{path} must be a JSON schema", param=path)
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidRequest(
            f"{path} is nested deeper than {MAX_SCHEMA_DEPTH} levels", param=path[:256]
        )
    named = schema.get("type", [])
    for name in [named] if not isinstance(named, list) else named:
        if not isinstance(name, str) or name not in ANY:
            where = f"{path}.type"
            text = f"{where} must be of {', '.join(sorted(ANY))}"
            raise InvalidRequest(text, param=where)
    values = schema.get("enum", [])
    if not isinstance(values, list) or len(values) > MAX_ENUM_VALUES:
        raise InvalidRequest(
            f"{path}.enum must be a list of at most {MAX_ENUM_VALUES:,} values",
            param=f"{path}.enum",
        )
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise InvalidRequest(
            f"{path}.$ref must refer to a part of the same schema (#/$defs/name)",
            param=f"{path}.$ref",
        )
    for where, part in _parts(schema, path):
        _check_schema(part, where, depth + 1)


def _parts(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of each schema within a schema."""
    for name in ("properties", "$defs", "definitions"):
        group = schema.get(name, {})
        if not isinstance(group, Mapping):
            raise InvalidRequest(f"{path}.{name} must be an object", param=f"{path}.{name}")
        yield from ((f"{path}.{name}.{key[:64]}", part) for key, part in group.items())
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        group = schema.get(name, [])
        if not isinstance(group, list):
            raise InvalidRequest(f"{path}.{name} must be a list", param=f"{path}.{name}")
        yield from ((f"{path}.{name}[{index}]", part) for index, part in enumerate(group))
    for name in ("items", "additionalProperties"):
        if name in schema and not isinstance(schema[name], list):
            yield f"{path}.{name}", schema[name]
