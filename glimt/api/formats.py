"""How clients say what an answer must look like.

`response_format` is OpenAI's, `structured_outputs` vLLM's, `guided_*` are its older names.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MAX_REGEX_CHARS = 16 * 2**10
MAX_GRAMMAR_CHARS = 64 * 2**10

Regex = Annotated[str, Meta(min_length=1, max_length=MAX_REGEX_CHARS)]
GrammarText = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Choices = Annotated[list[str], Meta(min_length=1, max_length=10_000)]


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True):
    """A schema under a name. It is enforced whether `strict` or not."""

    schema: dict[str, Any] | bool
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's way: one of the first five, and how JSON is written."""

    json: dict[str, Any] | bool | str | None = None  # a schema, as JSON or as its text
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None  # Lark, or GBNF
    json_object: bool | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: Regex | None = None
