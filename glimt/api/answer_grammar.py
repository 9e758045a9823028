"""The grammar of a chat answer: of the calls it must make, of the form it must have, or of both."""

from msgspec.structs import replace

from glimt.api.grammar import grammar_of
from glimt.api.schema import ChatRequest
from glimt.api.tools import ToolChoice, ToolSettings
from glimt.errors import BadGrammar
from glimt.frontend.call_grammar import (
    CallableFunction,
    free_calls,
    named_calls,
    required_calls,
)
from glimt.frontend.grammars import GrammarChecker
from glimt.grammar.schema import locate
from glimt.grammar.source import lark_grammar
from glimt.wire import Grammar


async def answer_grammar(
    request: ChatRequest, settings: ToolSettings, checker: GrammarChecker
) -> Grammar | None:
    """What the answer must match; None if anything will do.

    Calls that must be made leave no room for a form. Where the model may choose, a call may stand
    in place of the form; without a form, calls are held to the schemas of `strict` functions, or
    to names, as `settings.strict_level` says.
    Raises InvalidRequest, Unsupported, BadGrammar and Overloaded.
    """
    choice = request.tool_choice
    if request.tools and (choice == "required" or isinstance(choice, ToolChoice)):
        return await _calls(request, settings, _functions(request, settings), checker)
    form = await grammar_of(request, checker)
    if not request.tools or choice == "none" or settings.tokens is None:
        return form
    if form is not None:
        return replace(form, instead=(settings.tokens.begin,))
    functions = _functions(request, settings)
    if any(each.strict for each in functions):
        return await _calls(request, settings, functions, checker)
    # An answer that goes on with the client's own words may begin within a call.
    if settings.strict_level == "function" and not request.continue_final_message:
        return await checker.check(
            lark_grammar(named_calls(functions, settings.parser or "glm45", settings.marks)),
            allows_control=True,
        )
    return None


def _functions(request: ChatRequest, settings: ToolSettings) -> list[CallableFunction]:
    return [
        CallableFunction(
            tool.function.name,
            tool.function.parameters,
            settings.strict_level == "parameter" or bool(tool.function.strict),
        )
        for tool in request.tools or ()
    ]


async def _calls(
    request: ChatRequest,
    settings: ToolSettings,
    functions: list[CallableFunction],
    checker: GrammarChecker,
) -> Grammar:
    try:
        return await checker.check(
            lark_grammar(_written(request, settings, functions)), allows_control=True
        )
    except BadGrammar as error:
        index, reason = await _guilty(functions, checker, error)
    if index is None:
        raise BadGrammar(f"tools: {reason}", param="tools")
    path = f"tools[{index}].function.parameters"
    reason, path = locate(reason, functions[index].parameters or {}, path)
    raise BadGrammar(f"{path}: {reason}", param=path)


def _written(
    request: ChatRequest, settings: ToolSettings, functions: list[CallableFunction]
) -> str:
    choice, form = request.tool_choice, settings.parser or "glm45"
    if isinstance(choice, ToolChoice):
        named = [each for each in functions if each.name == choice.function.name]
        return required_calls(named, form, only_one=True)
    if choice == "required":
        return required_calls(functions, form, only_one=request.parallel_tool_calls is False)
    return free_calls(functions, form, settings.marks)


async def _guilty(
    functions: list[CallableFunction], checker: GrammarChecker, error: BadGrammar
) -> tuple[int | None, str]:
    """The first function whose grammar alone does not compile, and why; else the reason for all."""
    for index, function in enumerate(functions):
        try:
            await checker.check(
                lark_grammar(required_calls([function], "glm45", only_one=True)),
                allows_control=True,
            )
        except BadGrammar as own:
            return index, own.message
    return None, error.message
