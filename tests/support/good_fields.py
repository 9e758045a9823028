"""For each type of request a small body, and for each further field a value that is done.

Values stand beside the fields that they need: {"logprobs": True} for `top_logprobs`.
"""

from typing import Any

from glimt.api.anthropic_schema import CountRequest, MessagesRequest
from glimt.api.completions_schema import CompletionRequest
from glimt.api.responses_schema import ResponsesRequest
from glimt.api.schema import ChatRequest
from glimt.api.tokens import DetokenizeRequest, TokenizeRequest

Fields = dict[str, Any]

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGM4IScHAAK2AQU0"
    "pnWqAAAAAElFTkSuQmCC"
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
SAID = [{"role": "user", "content": "hi"}]
SEEN = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": PIXEL}},
            {"type": "text", "text": "hi"},
        ],
    }
]
BEGUN = [*SAID, {"role": "assistant", "content": "So"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
SIZE = {"size": {"longest_edge": 12544}}
VIDEO = {"video": {"max_frames": 8}}
TEMPLATE = "[gMASK]<sop>{% for m in messages %}<|user|>\n{{ m.content }}{% endfor %}"

_SHARED: dict[str, Fields] = {
    "model": {"model": "tiny"},
    "temperature": {"temperature": 0.7},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 40},
    "min_p": {"min_p": 0.05},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "seed": {"seed": -7},
    "stop_token_ids": {"stop_token_ids": [5]},
    "stream": {"stream": True},
    "priority": {"priority": -1},
    "cache_salt": {"cache_salt": "mine"},
    "request_id": {"request_id": "a-name"},
}
_SAMPLING: dict[str, Fields] = {
    **_SHARED,
    "min_tokens": {"min_tokens": 1},
    "stop": {"stop": ["\n", "END"]},
    "include_stop_str_in_output": {"include_stop_str_in_output": True, "stop": "e"},
    "ignore_eos": {"ignore_eos": True},
    "repetition_detection": {"repetition_detection": {"max_pattern_size": 8, "min_count": 3}},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": -0.5},
    "logit_bias": {"logit_bias": {"9": -100}},
    "allowed_token_ids": {"allowed_token_ids": [10, 11, 12]},
    "bad_words": {"bad_words": ["no"]},
    "skip_special_tokens": {"skip_special_tokens": False},
    "structured_outputs": {"structured_outputs": {"choice": ["yes", "no"]}},
    "user": {"user": "me"},
    "metadata": {"metadata": {"a": "b"}},
}
_TEXT: dict[str, Fields] = {
    **_SAMPLING,
    "max_tokens": {"max_tokens": 3},
    "n": {"n": 2},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": -1},
    "stream_options": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "prompt_logprobs": {"prompt_logprobs": 1},
    "return_tokens_as_token_ids": {"return_tokens_as_token_ids": True},
    "return_token_ids": {"return_token_ids": True},
    "response_format": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    },
    "guided_json": {"guided_json": SCHEMA},
    "guided_regex": {"guided_regex": "[a-z]{3}"},
    "guided_choice": {"guided_choice": ["yes", "no"]},
    "guided_grammar": {"guided_grammar": 'start: "a" | "b"'},
}
_PROMPT: dict[str, Fields] = {
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
    "mm_processor_kwargs": {"mm_processor_kwargs": SIZE},
    "media_io_kwargs": {"media_io_kwargs": VIDEO},
}
_CHAT: dict[str, Fields] = {
    **_PROMPT,
    "messages": {"messages": SEEN},
    "add_generation_prompt": {"add_generation_prompt": True},
    "continue_final_message": {"messages": BEGUN, "continue_final_message": True},
    "chat_template": {"chat_template": TEMPLATE},
    "tools": {"tools": [TOOL]},
}
_RESPONSES_TOOL = {"type": "function", "name": "look", "parameters": SCHEMA}
_RESPONSES: dict[str, Fields] = {
    **_SAMPLING,
    **_PROMPT,
    "input": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
    "instructions": {"instructions": "be short"},
    "max_output_tokens": {"max_output_tokens": 3},
    "top_logprobs": {"top_logprobs": 1, "include": ["message.output_text.logprobs"]},
    "include": {"include": ["message.output_text.logprobs"]},
    "stream_options": {"stream": True, "stream_options": {"include_obfuscation": False}},
    "tools": {"tools": [_RESPONSES_TOOL]},
    "tool_choice": {
        "tools": [_RESPONSES_TOOL],
        "tool_choice": {"type": "function", "name": "look"},
    },
    "parallel_tool_calls": {"tools": [_RESPONSES_TOOL], "parallel_tool_calls": False},
    "reasoning": {"reasoning": {"effort": "none"}},
    "text": {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
    "include_reasoning": {"include_reasoning": False},
    "thinking_token_budget": {"thinking_token_budget": 1},
    "enable_thinking": {"enable_thinking": False},
}
_ANTHROPIC_TOOL = {"name": "look", "input_schema": SCHEMA}
_ANTHROPIC_IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": PIXEL.partition(",")[2]},
}
_COUNT: dict[str, Fields] = {
    **_PROMPT,
    "model": _SHARED["model"],
    "messages": {"messages": [{"role": "user", "content": [_ANTHROPIC_IMAGE]}]},
    "system": {"system": [{"type": "text", "text": "be short"}]},
    "tools": {"tools": [_ANTHROPIC_TOOL]},
    "tool_choice": {"tools": [_ANTHROPIC_TOOL], "tool_choice": {"type": "tool", "name": "look"}},
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 1}},
    "output_format": {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    "output_config": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
}

# The smallest body of a type of request, and its fields.
GOOD: dict[type, tuple[Fields, dict[str, Fields]]] = {
    ChatRequest: (
        {"messages": SAID},
        {
            **_TEXT,
            **_CHAT,
            "max_completion_tokens": {"max_completion_tokens": 3},
            "logprobs": {"logprobs": True},
            "top_logprobs": {"logprobs": True, "top_logprobs": 2},
            "include_reasoning": {"include_reasoning": False},
            "reasoning_effort": {"reasoning_effort": "none"},
            "enable_thinking": {"enable_thinking": True},
            "thinking_token_budget": {"thinking_token_budget": 1},
            "echo": {"messages": BEGUN, "continue_final_message": True, "echo": True},
            "tool_choice": {"tools": [TOOL], "tool_choice": "required"},
            "parallel_tool_calls": {"tools": [TOOL], "parallel_tool_calls": False},
        },
    ),
    CompletionRequest: (
        {"prompt": "hi", "max_tokens": 3},
        {
            **_TEXT,
            "prompt": {"prompt": [[5, 6, 7], [8]]},
            "echo": {"echo": True},
            "logprobs": {"logprobs": 1, "echo": True},
            "add_special_tokens": {"add_special_tokens": False},
        },
    ),
    ResponsesRequest: ({"input": "hi"}, _RESPONSES),
    MessagesRequest: (
        {"messages": SAID, "max_tokens": 3},
        {
            **_COUNT,
            **{name: _SHARED[name] for name in ("stream", "temperature", "top_k", "top_p", "seed")},
            **{name: _SHARED[name] for name in ("priority", "cache_salt")},
            "max_tokens": {"max_tokens": 2},
            "stop_sequences": {"stop_sequences": ["END"]},
        },
    ),
    CountRequest: ({"messages": SAID}, _COUNT),
    TokenizeRequest: (
        {"messages": SAID},
        {
            **_CHAT,
            "model": _SHARED["model"],
            "prompt": {"messages": None, "prompt": "hi"},
            "add_special_tokens": {"messages": None, "prompt": "hi", "add_special_tokens": False},
            "return_token_strs": {"return_token_strs": True},
        },
    ),
    DetokenizeRequest: (
        {"tokens": [5, 6]},
        {"tokens": {"tokens": []}, "model": _SHARED["model"]},
    ),
}
