"""Writes grammars: from a schema, an expression, a choice or Lark to the text that is compiled.

The texts are self-contained: whoever compiles one needs nothing but a vocabulary.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from glimt.errors import BadGrammar

WHITESPACE = r"([ \t]|\r?\n[ \t]{0,64})?"
ANY_OBJECT: dict[str, Any] = {"type": "object"}


_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_MAX_REASON_CHARS = 200


def json_schema_grammar(schema: Mapping[str, Any], *, whitespace: str = WHITESPACE) -> str:
    """JSON that is an instance of `schema`, its properties in the order of the schema.

    `whitespace`: what may stand between tokens of the JSON, as a regular expression; "" = nothing.
    The default is what printers of JSON write: nothing, one space, or a line end and an
    indentation. A model that would rather write blanks than go on cannot fill its answer with them.
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


def is_gbnf(text: str) -> bool:
    """Whether a grammar is written in GBNF (`root ::= …`), as llama.cpp and xgrammar know it."""
    return _GBNF_RULE.search(text) is not None


def lark_of_gbnf(text: str) -> str:
    """The same grammar in Lark's syntax. 64 KiB take up to 0.2 s. Raises BadGrammar."""
    try:
        return gbnf_to_lark(text)
    except RecursionError:
        raise BadGrammar("the grammar is nested too deeply") from None
    except Exception as error:  # the library raises bare ones for what it cannot read
        raise BadGrammar(f"this is no GBNF: {str(error)[:_MAX_REASON_CHARS]}") from None
