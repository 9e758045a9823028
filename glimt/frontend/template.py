"""Runs a checkpoint's chat template, in a sandbox, with what published templates expect of it.

The environment is the one such templates are written for (Hugging Face's): blocks trimmed, loop
controls, `tojson` without HTML escapes, `raise_exception`, `strftime_now`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime
from typing import Any, Literal

from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glimt.errors import BadCheckpoint, BadSettings, InvalidRequest

# What Glimt itself gives every template.
_GIVEN = frozenset(("messages", "tools", "documents", "add_generation_prompt"))
_SWITCHES = ("enable_thinking", "thinking", "clear_thinking", "reasoning_effort")
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# Everything outside ASCII but private-use characters, which may be stand-ins (standins.py).
_TO_ESCAPE = re.compile(r"[^\x00-\x7f\ue000-\uf8ff\U000f0000-\U0010ffff]")


ContentFormat = Literal["auto", "string", "openai"]

_PROBE = "a few words"
_PRINTED_PART = re.compile(r"""\{\s*['"]type['"]""")


class ChatTemplate:
    """A compiled chat template. It may be trusted to end; client strings are only data to it."""

    def __init__(self, source: str, now: Callable[[], datetime] = datetime.now) -> None:
        """Compile. Raises BadCheckpoint with the line of a syntax error."""
        self.source = source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
        except TemplateSyntaxError as error:
            raise BadCheckpoint(
                f"the chat template has an error in line {error.lineno}: {error.message}"
            ) from error
        # What it reads beside the messages.
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        # What `chat_template_kwargs` may set beyond the switches that every server knows: not what
        # is first set and then read, if only in some cases.
        ours = _GIVEN | environment.globals.keys() | set(_SWITCHES)
        self.own_arguments = (self.variables & _read_first(tree)) - ours
        self.takes_tools = "tools" in self.variables
        self._takes_lists = self._shows([{"type": "text", "text": _PROBE}])
        self._takes_texts = self._shows(_PROBE)

    def takes_lists(self, wanted: ContentFormat) -> bool:
        """Whether messages may reach it as lists of parts."""
        return wanted == "openai" or (wanted == "auto" and self._takes_lists)

    def takes_texts(self, wanted: ContentFormat) -> bool:
        """Whether messages may reach it as one text. One that takes neither gets texts."""
        return wanted == "string" or (
            wanted == "auto" and (self._takes_texts or not self._takes_lists)
        )

    def _shows(self, content: Any) -> bool:
        """It prints what such a message says, and not how it is made."""
        try:
            text = self.render([{"role": "user", "content": content}])
        except InvalidRequest:
            return False
        return _PROBE in text and not _PRINTED_PART.search(text)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt as one string. Raises InvalidRequest where the template fails or refuses."""
        try:
            return self._template.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **kwargs,
            )
        except _Refusal as error:
            text = f"the chat template refuses these messages: {error.message}"
        except UndefinedError:
            text = "the chat template asks for something that the messages do not have"
        except SecurityError:
            text = "the chat template tries something that its sandbox forbids"
        except TemplateError:
            text = "the chat template fails on these messages"
        except Exception:  # whatever Python code of a template may raise, TypeError for one
            text = "the chat template cannot handle the shape of these messages"
        raise InvalidRequest(text, param="messages")


def compile_request_template(source: str) -> ChatTemplate:
    """A template that came with a request, from a client that the operator trusts with it.

    Raises InvalidRequest with the line of a syntax error.
    """
    try:
        return ChatTemplate(source)
    except BadCheckpoint as error:
        raise InvalidRequest(error.message, param="chat_template") from None


def check_template_kwargs(
    kwargs: Mapping[str, Any], own_arguments: Set[str] = frozenset()
) -> dict[str, Any]:
    """`chat_template_kwargs` as the template gets them: the switches of thinking, of their types,
    and whatever else the template reads (`own_arguments`), which may be any JSON.

    `thinking` is another spelling of `enable_thinking`, and `reasoning_effort: none` turns thinking
    off, too. Raises InvalidRequest naming what is unknown, of the wrong type, or contradictory.
    """
    path = "chat_template_kwargs"
    checked: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in _SWITCHES[:3]:
            if not isinstance(value, bool):
                raise InvalidRequest(f"{path}.{name} must be true or false", param=f"{path}.{name}")
        elif name == "reasoning_effort":
            if value not in _EFFORTS:
                text = f"{path}.{name} must be one of {', '.join(_EFFORTS)}"
                raise InvalidRequest(text, param=f"{path}.{name}")
        elif name not in own_arguments:
            raise _unread(name, own_arguments)
        checked[name] = value
    wishes = {checked[name] for name in ("enable_thinking", "thinking") if name in checked}
    if len(wishes) > 1:
        raise InvalidRequest(f"{path}: enable_thinking and thinking contradict", param=path)
    if wishes:
        checked["enable_thinking"] = wishes.pop()
    elif checked.get("reasoning_effort") == "none":
        checked["enable_thinking"] = False
    return checked


def check_operators_kwargs(kwargs: Mapping[str, Any], template: ChatTemplate) -> None:
    """Raises BadSettings for --default-chat-template-kwargs with which no request could be made."""
    try:
        check_template_kwargs(kwargs, template.own_arguments)
    except InvalidRequest as error:
        raise BadSettings(f"--default-chat-template-kwargs: {error.message}") from None


def _unread(name: str, own_arguments: Set[str]) -> InvalidRequest:
    path = "chat_template_kwargs"
    shown = name if name.isidentifier() and len(name) <= 64 else "…"
    read = ", ".join(sorted({*_SWITCHES, *own_arguments}))
    text = (
        f"{path}.{shown} is not known: the chat template does not read it; what may be set: {read}"
    )
    return InvalidRequest(text, param=path if shown == "…" else f"{path}.{shown}")


def _read_first(tree: nodes.Node) -> Set[str]:
    """Names that are read before they are set, in the order in which a template is written."""
    first: dict[str, str] = {}
    rest = [tree]
    while rest:
        node = rest.pop()
        if isinstance(node, nodes.Name):
            first.setdefault(node.name, node.ctx)
        children = list(node.iter_child_nodes())
        if isinstance(node, nodes.Assign | nodes.For):  # what is on the right is read first
            children.sort(key=lambda child: child is node.target)
        if isinstance(node, nodes.For):
            children.sort(key=lambda child: child is not node.iter)
        rest += reversed(children)
    return {name for name, context in first.items() if context == "load"}


class _Refusal(TemplateError):
    """The template called `raise_exception`."""


def _refuse(message: Any) -> None:
    raise _Refusal(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as a prompt wants it: no HTML escapes, non-ASCII characters kept unless asked."""
    text = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return _TO_ESCAPE.sub(_escape, text) if ensure_ascii else text


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match.group())[1:-1]
