"""Streams byte for byte, and that they fold to the whole answer however the tokens come."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.wire import Output
from tests.support.http_half import EOS, USER, Reply, Serving, chat_body, spoken, tokenizer

THOUGHT = "<think>\nLet me see. 😀\n</think>\n\nIt is a caf\u00e9, 北京!"


def chunk(choices: str, usage: str = "") -> str:
    head = '{"id":"ID","object":"chat.completion.chunk","created":1700000000,"model":"tiny"'
    return f'data: {head},"choices":[{choices}]{usage}}}\n\n'


def choice(delta: str, index: int = 0) -> str:
    return f'{{"index":{index},"delta":{{{delta}}},"logprobs":null,"finish_reason":null}}'


async def streamed(serving: Serving, **fields: Any) -> str:
    reply = await serving.chat(stream=True, **fields)
    assert reply.status == 200, reply.body
    call_id = reply.events[0]["id"]
    assert call_id.startswith("chatcmpl-")
    return reply.body.decode().replace(call_id, "ID")


async def test_a_stream_byte_for_byte() -> None:
    tokens = [*tokenizer().encode_text("Hi"), EOS]
    first, rest = "H", "i"
    assert len(tokens) == 3
    body = await streamed(Serving(tokens), stream_options={"include_usage": True})
    assert body == (
        chunk(choice(f'"role":"assistant","content":"{first}"'))
        + chunk(choice(f'"content":"{rest}"'))
        + chunk('{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null}')
        + chunk(
            "",
            ',"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,'
            '"prompt_tokens_details":{"cached_tokens":4},'
            '"completion_tokens_details":{"reasoning_tokens":0}}',
        )
        + "data: [DONE]\n\n"
    )


async def test_thoughts_come_under_both_names() -> None:
    body = await streamed(Serving(spoken("<think>a</think>b"), parse_reasoning=True))
    assert chunk(choice('"role":"assistant","reasoning":"a","reasoning_content":"a"')) in body
    assert chunk(choice('"content":"b"')) in body
    assert "usage" not in body


async def test_a_half_character_waits_and_the_role_with_it() -> None:
    serving = Serving(spoken("😀"))
    assert len(serving.answers[0]) > 2
    events = (await serving.chat(stream=True)).events
    assert [event["choices"][0]["delta"] for event in events[:-1]] == [
        {"role": "assistant", "content": "😀"},
        {},
    ]


async def test_an_empty_answer_still_has_a_role_and_an_end() -> None:
    events = (await Serving([EOS]).chat(stream=True)).events
    assert [event["choices"][0]["delta"] for event in events[:-1]] == [
        {"role": "assistant", "content": ""},
        {},
    ]
    assert (await Serving([EOS]).chat()).json()["choices"][0]["message"]["content"] == ""


async def test_tokens_that_came_together_are_one_event() -> None:
    serving = Serving(spoken("Hello, world!"))
    serving.engine.tokens_per_step = 100
    events = (await serving.chat(stream=True)).events
    assert [event["choices"][0]["delta"] for event in events[:-1]] == [
        {"role": "assistant", "content": "Hello, world!"},
        {},
    ]


async def test_continuous_usage_counts_on_every_event() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = (await Serving(spoken("abc")).chat(stream=True, stream_options=options)).events
    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == len(spoken("abc"))
    events = (await Serving(spoken("abc"), force_include_usage=True).chat(stream=True)).events
    assert all("usage" in event for event in events[:-1])


async def test_the_stop_token_that_is_no_plain_end_is_named() -> None:
    for tokens, reason in ((spoken("a"), None), (spoken("a", USER), USER)):
        reply = await Serving(tokens).chat()
        (answer,) = reply.json()["choices"]
        assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", reason)
        assert answer["message"]["content"] == "a"


async def test_length_ends_an_answer_at_max_tokens() -> None:
    reply = (await Serving(spoken("Hello, world!")).chat(max_tokens=3)).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_ends_the_answer_and_aborts_the_engine(include: bool) -> None:
    serving = Serving(spoken("one two three four five six seven"))
    reply = await serving.chat(stop=["three", "nine"], include_stop_str_in_output=include)
    (answer,) = reply.json()["choices"]
    assert answer["message"]["content"] == "one two three"[: 13 if include else 8]
    assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", "three")
    read = reply.json()["usage"]["completion_tokens"]
    assert tokenizer().decode(serving.answers[0][:read]).endswith("three")
    assert serving.engine.aborts == [serving.engine.submits[0].request_id]
    serving.engine.step()
    assert serving.client.num_open == 0


@pytest.mark.parametrize("tokens_per_step", [1, 3, 100])
async def test_what_comes_after_a_stop_string_does_not_count(tokens_per_step: int) -> None:
    serving = Serving(spoken("one two three four"))
    serving.engine.tokens_per_step = tokens_per_step
    reply = (await serving.chat(stop="two", return_token_ids=True, logprobs=True)).json()
    tokens = reply["choices"][0]["token_ids"]
    assert tokenizer().decode(tokens).endswith("two")
    assert reply["usage"]["completion_tokens"] == len(tokens)
    assert len(reply["choices"][0]["logprobs"]["content"]) == len(tokens)


async def test_logprobs_have_texts_bytes_and_no_infinity() -> None:
    serving = Serving(spoken("é"))
    reply = await serving.chat(logprobs=True, top_logprobs=3)
    content = reply.json()["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(each["bytes"]) for each in content[:-1]) == "é".encode()
    assert [each["logprob"] for each in content[0]["top_logprobs"]] == [-0.5, -1.5, -9999.0]
    reply = await serving.chat(logprobs=True, return_tokens_as_token_ids=True)
    content = reply.json()["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in content] == [f"token_id:{i}" for i in serving.answers[0]]
    assert content[0]["top_logprobs"] == []


async def test_streamed_logprobs_are_the_whole_ones_in_pieces() -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
    serving = Serving(spoken(THOUGHT))
    (whole,) = (await serving.chat(**fields)).json()["choices"]
    events = (await serving.chat(stream=True, **fields)).events[:-1]
    choices = [event["choices"][0] for event in events]
    pieces = [each for c in choices if c["logprobs"] for each in c["logprobs"]["content"]]
    assert pieces == whole["logprobs"]["content"]
    ids = [token_id for c in choices for token_id in c.get("token_ids", [])]
    assert ids == whole["token_ids"] == serving.answers[0]
    assert len(choices[0]["prompt_token_ids"]) == 7


async def test_hidden_thoughts_are_counted_and_not_shown() -> None:
    serving = Serving(spoken(THOUGHT), parse_reasoning=True)
    reply = (await serving.chat(include_reasoning=False)).json()
    assert reply["choices"][0]["message"]["reasoning"] is None
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert "see" not in (await serving.chat(stream=True, include_reasoning=False)).body.decode()


async def test_what_ends_a_thought_that_never_began_is_dropped_streamed_and_whole() -> None:
    serving = Serving(spoken("hm \n</think>yes"), parse_reasoning=True)
    message = (await serving.chat()).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (None, "hm \nyes")
    (message,) = folded(await serving.chat(stream=True))
    assert (message["reasoning"], message["content"]) == ("", "hm \nyes")


async def test_several_choices_are_told_apart_and_counted_together() -> None:
    texts = ["one", "two and more", "three"]
    serving = Serving(*map(spoken, texts))
    reply = (await serving.chat(n=3)).json()
    assert [each["message"]["content"] for each in reply["choices"]] == texts
    assert reply["usage"]["prompt_tokens"] == 7
    assert reply["usage"]["completion_tokens"] == sum(len(spoken(text)) for text in texts)
    serving = Serving(*map(spoken, texts))
    streamed_texts = folded(await serving.chat(n=3, stream=True), 3)
    assert [each["content"] for each in streamed_texts] == texts


async def test_one_choice_that_stops_leaves_the_others_running() -> None:
    serving = Serving(spoken("a STOP b c d"), spoken("a b c d"))
    reply = (await serving.chat(n=2, stop="STOP")).json()
    assert [each["message"]["content"] for each in reply["choices"]] == ["a ", "a b c d"]
    assert len(serving.engine.aborts) == 1


def folded(reply: Reply, n: int = 1) -> list[dict[str, Any]]:
    """What a client makes of a stream."""
    messages: list[dict[str, Any]] = [{"content": "", "reasoning": ""} for _ in range(n)]
    assert reply.events[-1] == "[DONE]"
    for event in reply.events[:-1]:
        for each in event["choices"]:
            message, delta = messages[each["index"]], each["delta"]
            assert "finish_reason" not in message, "nothing follows the end of a choice"
            assert ("role" in delta) == ("role" not in message and bool(delta))
            message.update({"role": delta["role"]} if "role" in delta else {})
            message["content"] += delta.get("content", "")
            message["reasoning"] += delta.get("reasoning", "")
            if each["finish_reason"] is not None:
                assert delta == {}
                message |= {k: each[k] for k in ("finish_reason", "stop_reason")}
    return messages


texts = st.lists(
    st.sampled_from(["<think>", "</think>", "a", " b", "\n", "é", "😀", "北京", "STOP", "ST", "!"]),
    max_size=12,
).map("".join)


@given(texts, st.lists(st.integers(1, 5), min_size=1, max_size=30), st.booleans(), st.booleans())
@settings(max_examples=60)
async def test_a_stream_folds_to_the_whole_answer_however_tokens_come(
    text: str, cuts: list[int], has_stop: bool, parse: bool
) -> None:
    fields: dict[str, Any] = {"stop": ["STOP", "b"]} if has_stop else {}
    serving = Serving(spoken(text), parse_reasoning=parse)
    serving.engine.tokens_per_step = 1000
    whole = (await serving.chat(**fields)).json()
    pieces = Serving(spoken(text), parse_reasoning=parse)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    reply = await cut_into(pieces, cuts, chat_body(**usage, **fields))
    assert reply.events[-2]["usage"] == whole["usage"]
    (message,) = folded(reply)
    (expected,) = whole["choices"]
    assert message["finish_reason"] == expected["finish_reason"]
    assert message["stop_reason"] == expected["stop_reason"]
    assert message["content"] == expected["message"]["content"]
    assert message["reasoning"] == (expected["message"]["reasoning"] or "")


async def cut_into(serving: Serving, cuts: list[int], body: bytes) -> Reply:
    """Answer with as many tokens per step as `cuts` says, over and over."""

    def advance(*_: object) -> None:
        serving.engine.tokens_per_step = cuts[serving.engine.num_steps % len(cuts)]

    deliver = serving.engine.deliver

    def deliver_and_advance(*outputs: Output, stats: Any = None) -> None:
        deliver(*outputs, stats=stats)
        advance()

    serving.engine.deliver = deliver_and_advance  # type: ignore[method-assign]
    advance()
    return await serving.ask(body=body)


async def test_usage_of_an_image_question_is_an_independent_count() -> None:
    serving = Serving(spoken("A cat."))
    content = [
        {"type": "image_url", "image_url": {"url": "data:a"}},
        {"type": "text", "text": "What is it?"},
    ]
    reply = (await serving.chat(messages=[{"role": "user", "content": content}])).json()
    submit = serving.engine.submits[0]
    assert reply["usage"]["prompt_tokens"] == len(submit.token_ids) // 4
    assert submit.images[0].num_tokens == 16
    assert reply["usage"]["completion_tokens"] == len(serving.answers[0])


@given(st.text(st.characters(codec="utf-8"), max_size=20))
@settings(max_examples=30)
async def test_any_text_survives_the_stream(text: str) -> None:
    tokens = [*tokenizer().encode_text(text), EOS]
    (message,) = folded(await Serving(tokens).chat(stream=True))
    assert message["content"] == text


BOXED = "The cat <|begin_of_box|>[[1,2,3,4]]<|end_of_box|> sits."


async def test_box_marks_are_kept_stripped_or_told_apart() -> None:
    (choice,) = (await Serving(spoken(BOXED)).chat()).json()["choices"]
    assert choice["message"]["content"] == BOXED
    assert "boxes" not in choice["message"]
    bare = "The cat [[1,2,3,4]] sits."
    (choice,) = (await Serving(spoken(BOXED), boxes="strip").chat()).json()["choices"]
    assert choice["message"]["content"] == bare
    assert "boxes" not in choice["message"]
    serving = Serving(spoken(BOXED), boxes="structured")
    (choice,) = (await serving.chat()).json()["choices"]
    box = {"text": "[[1,2,3,4]]", "coordinates": [[1, 2, 3, 4]]}
    assert (choice["message"]["content"], choice["message"]["boxes"]) == (bare, [box])
    reply = await serving.chat(stream=True)
    boxes = [
        b for event in reply.events[:-1] for b in event["choices"][0]["delta"].get("boxes", [])
    ]
    assert boxes == [{**box, "index": 0}]
    assert folded(reply)[0]["content"] == bare
    (choice,) = (await Serving(spoken("x"), boxes="structured").chat()).json()["choices"]
    assert choice["message"]["boxes"] == []


async def test_the_role_of_an_answer_is_the_operators_choice() -> None:
    serving = Serving(response_role="model")
    assert (await serving.chat()).json()["choices"][0]["message"]["role"] == "model"
    first = (await serving.chat(stream=True)).events[0]
    assert first["choices"][0]["delta"]["role"] == "model"
