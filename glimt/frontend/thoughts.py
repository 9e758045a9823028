"""What an engine must know of an answer's thoughts: what they are free of, how long they may be."""

from msgspec.structs import replace

from glimt.frontend.prompt import IntArray
from glimt.frontend.reasoning import ReasoningTokens
from glimt.frontend.tokenizer import Tokenizer
from glimt.wire import SamplingParams, ThinkingBudget, ThoughtTokens

_LINE_BREAKS = ("\n", "\n\n")


def with_thoughts(
    sampling: SamplingParams,
    reasoning: ReasoningTokens,
    tokenizer: Tokenizer,
    prompt_ids: IntArray,
    *,
    budget: int | None = None,
) -> SamplingParams:
    """The same for a reply to this prompt: its thoughts, if it has any, are free of its grammar,
    and after `budget` tokens they are closed by a line break and `</think>`."""
    channel = reasoning.channel_after(prompt_ids)
    if channel == "content" or (sampling.grammar is None and budget is None):
        return sampling
    breaks = [ids[0] for ids in map(tokenizer.encode_text, _LINE_BREAKS) if len(ids) == 1]
    thoughts = ThoughtTokens(
        begin=reasoning.begin,
        end=reasoning.end,
        leave=() if reasoning.tool_call is None else (reasoning.tool_call,),
        line_breaks=tuple(breaks),
    )
    if sampling.grammar is not None:
        grammar = replace(sampling.grammar, channel=channel, thoughts=thoughts)
        sampling = replace(sampling, grammar=grammar)
    if budget is None:
        return sampling
    thinking = ThinkingBudget(
        max_tokens=budget,
        channel=channel,
        thoughts=thoughts,
        closing=(*tokenizer.encode_text("\n"), reasoning.end),
    )
    return replace(sampling, thinking=thinking)
