"""Writes grammars: from a schema, an expression, a choice or Lark to the text that is compiled.

The texts are self-contained: whoever compiles one needs nothing but a vocabulary.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, regex_to_lark

WHITESPACE = r"[ \n\r\t]{0,96}"
ANY_OBJECT: dict[str, Any] = {"type": "object"}


def json_schema_grammar(schema: Mapping[str, Any], *, whitespace: str = WHITESPACE) -> str:
    """JSON that is an instance of `schema`, its properties in the order of the schema.

    `whitespace`: what may stand between tokens of the JSON, as a regular expression; "" = nothing.
    The default has room for any indentation, and none for a model that fills its answer with it.
    """
    # Never "lenient", which would skip over what the library cannot do.
    options = {
        "lenient": False,
        "whitespace_flexible": bool(whitespace),
        "whitespace_pattern": whitespace or None,
    }
    return json.dumps({"grammars": [{"json_schema": {**schema, "x-guidance": options}}]})


def regex_grammar(expression: str) -> str:
    """Text that the expression (of Rust's regex syntax, without look-around) matches as a whole.

    The classes d and w hold ASCII only, as in JSON schemas.
    """
    return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(expression, 'dw')}/")


def choice_grammar(choices: Sequence[str]) -> str:
    """One of these texts."""
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(each) for each in choices))


def lark_grammar(text: str) -> str:
    """What the rule `start` of a grammar in Lark's syntax derives.

    Control tokens are written `<tool_call>`, and count only in a `wire.Grammar` that
    `allows_control`: in grammars of the server's own, never in a client's. Of tokens that end an
    answer none can be part of it.
    """
    return LLMatcher.grammar_from_lark(text)
