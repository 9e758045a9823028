"""OpenAI's and Anthropic's packages against one real server: every route that generates."""

import base64
from collections.abc import Iterator
from typing import Any, Literal

import pydantic
import pytest

from tests.e2e.test_server import data_url, picture
from tests.support.serving import Serving

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

PICTURE = picture(64, 48)


class Colour(pydantic.BaseModel):
    """Nothing in it can go on for ever, whatever a random model draws."""

    is_red: bool
    shade: Literal["light", "dark"]


TOOL = {
    "name": "look_up",
    "description": "Look a sign up",
    "input_schema": Colour.model_json_schema(),
}


@pytest.fixture
def claude(serving: Serving) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=serving.url, api_key="none", max_retries=0) as client:
        yield client


def test_responses_about_a_picture_streamed_and_whole(client: Any) -> None:
    parts = [
        {"type": "input_image", "image_url": data_url(PICTURE)},
        {"type": "input_text", "text": "What is it?"},
    ]
    ask = {
        "model": "tiny",
        "input": [{"role": "user", "content": parts}],
        "max_output_tokens": 12,
        "temperature": 0,
    }
    whole = client.responses.create(**ask)
    with client.responses.stream(**ask) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    final = events[-1].response
    assert whole.output_text == final.output_text == "".join(deltas)
    assert whole.usage.output_tokens == 12
    assert whole.status == final.status == "incomplete"
    same = client.chat.completions.create(
        model="tiny",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": data_url(PICTURE)}},
                    {"type": "text", "text": "What is it?"},
                ],
            }
        ],
        max_tokens=12,
        temperature=0,
    )
    assert same.choices[0].message.content == whole.output_text
    assert same.usage.prompt_tokens == whole.usage.input_tokens


def test_a_response_is_parsed_into_a_model_that_it_was_held_to(client: Any) -> None:
    answer = client.responses.parse(
        model="tiny",
        input="Read the sign.",
        text_format=Colour,
        max_output_tokens=300,
        extra_body={"enable_thinking": False},
    )
    assert answer.status == "completed"
    assert isinstance(answer.output_parsed, Colour)


def test_messages_about_a_picture_streamed_and_whole(claude: Any) -> None:
    source = {
        "type": "base64",
        "media_type": "image/jpeg",
        "data": base64.b64encode(PICTURE).decode(),
    }
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    ask = {
        "model": "tiny",
        "max_tokens": 12,
        "messages": [{"role": "user", "content": content}],
        "extra_body": {"temperature": 0},
    }
    whole = claude.messages.create(**ask)
    with claude.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(b.text for b in whole.content if b.type == "text") == text
    assert [block.type for block in final.content] == [block.type for block in whole.content]
    counted = claude.messages.count_tokens(model="tiny", messages=ask["messages"])
    usage = whole.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    assert claude.messages.create(**ask).usage.cache_read_input_tokens > 0


def test_a_tool_that_must_be_called_is_called_with_arguments_of_its_schema(claude: Any) -> None:
    answer = claude.messages.create(
        model="tiny",
        max_tokens=400,
        messages=[{"role": "user", "content": "Look it up."}],
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "look_up"},
        thinking={"type": "disabled"},
        extra_body={"seed": 3},
    )
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert [call.name for call in calls] == ["look_up"]
    assert answer.stop_reason == "tool_use"
    Colour.model_validate(calls[0].input)


def test_a_completion_judges_its_prompt_and_goes_on(client: Any) -> None:
    ask: dict[str, Any] = {"model": "tiny", "echo": True, "logprobs": 1, "temperature": 0}
    ask["extra_body"] = {"return_token_ids": True}
    answer = client.completions.create(prompt=["one two", "three"], max_tokens=3, **ask)
    for choice, prompt in zip(answer.choices, ("one two", "three"), strict=True):
        assert choice.text.startswith(prompt)
        logprobs = choice.logprobs
        assert logprobs.token_logprobs[0] is None
        assert all(value < 0 for value in logprobs.token_logprobs[1:])
        assert len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
        # What was generated is judged the same when it comes as part of a prompt.
        ids = [*choice.prompt_token_ids, *choice.token_ids]
        (again,) = client.completions.create(prompt=ids, max_tokens=0, **ask).choices
        assert again.logprobs.tokens == logprobs.tokens
        assert again.logprobs.token_logprobs[1:] == pytest.approx(
            logprobs.token_logprobs[1:], abs=1e-3
        )


def test_errors_are_those_that_each_client_knows(client: Any, claude: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="other", input="x")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="tiny", input="x", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(
            model="other", max_tokens=1, messages=[{"role": "user", "content": "x"}]
        )
    broken = {"type": "image", "source": {"type": "url", "url": "data:image/png;base64,AAAA"}}
    question = [{"role": "user", "content": [broken]}]
    with pytest.raises(anthropic.BadRequestError, match="image"):
        claude.messages.create(model="tiny", max_tokens=1, messages=question)
    assert [model.id for model in claude.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_an_operator_has_caches_forgotten_and_pauses_the_server(serving: Serving) -> None:
    operator = openai.OpenAI(base_url=serving.url, api_key="root", max_retries=0)
    prompt = list(range(100, 140))

    def num_cached() -> int:
        ask = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
        answer = operator.post("/v1/completions", body=ask, cast_to=dict[str, Any])
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    with operator:
        assert [num_cached(), num_cached()] == [0, 32]
        operator.post("/reset_prefix_cache", cast_to=object)
        assert num_cached() == 0
        operator.post("/reset_encoder_cache", cast_to=object)
        operator.post("/reset_mm_cache", cast_to=object)
        operator.post("/pause", cast_to=object)
        with pytest.raises(openai.InternalServerError, match="paused"):
            num_cached()
        operator.post("/resume", cast_to=object)
        assert num_cached() == 32


def test_a_server_sleeps_wakes_and_says_the_same(serving: Serving) -> None:
    """Level 2 reads the weights again; the engine's process stays."""
    operator = openai.OpenAI(base_url=serving.url, api_key="root", max_retries=0)
    ask = {"prompt": list(range(100, 140)), "max_tokens": 8, "temperature": 0}

    def text() -> Any:
        answer = operator.post("/v1/completions", body=ask, cast_to=dict[str, Any])
        return answer["choices"][0]["text"]

    engine = serving.child("engine").pid
    with operator:
        expected = text()
        for level in (1, 2):
            operator.post(f"/sleep?level={level}", cast_to=object)
            assert operator.get("/is_sleeping", cast_to=dict[str, Any])["level"] == level
            with pytest.raises(openai.InternalServerError, match="sleeps") as caught:
                text()
            assert caught.value.response.headers["retry-after"]
            operator.post("/wake_up", cast_to=object)
            assert text() == expected
        with pytest.raises(openai.BadRequestError, match="--profiler-config"):
            operator.post("/start_profile", cast_to=object)
    assert serving.child("engine").pid == engine
