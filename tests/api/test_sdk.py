"""The official clients, and bare sockets, against a real server on a loopback port."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from glimt.api.tools import ToolSettings
from tests.support.http_half import INFO, MODEL, Serving, chat_body, spoken, tokenizer

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

QUESTION: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:a"}},
        ],
    }
]


def sdk(address: str, **options: Any) -> Any:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", **options)


def claude(address: str) -> Any:
    return anthropic.AsyncAnthropic(base_url=address, api_key="none", max_retries=0)


async def test_the_official_client_streams_an_image_question() -> None:
    serving = Serving(spoken("<think>hm</think>A cat 😀"), parse_reasoning=True)
    async with serving.listening() as address, sdk(address) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            stream=True,
            max_tokens=50,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "A cat 😀"
    assert "".join(getattr(delta, "reasoning", "") for delta in deltas) == "hm"
    assert deltas[0].role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == len(serving.engine.submits[0].token_ids) // 4
    assert usage.completion_tokens == len(serving.answers[0])


async def test_the_official_client_reads_a_whole_answer_and_the_models() -> None:
    serving = Serving(spoken("yes"), api_keys=("none",))
    async with serving.listening() as address, sdk(address) as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=50, n=2, logprobs=True, top_logprobs=2
        )
        models = await client.models.list()
    assert [choice.message.content for choice in answer.choices] == ["yes", "yes"]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 2
    assert [model.id for model in models.data] == [MODEL, "alias"]


async def test_anthropics_client_lists_the_models_in_pages_and_looks_one_up() -> None:
    serving = Serving(served_names=("a", "org/b", "c"))
    async with serving.listening() as address, claude(address) as client:
        page = await client.models.list()
        assert [model.id for model in page.data] == ["a", "org/b", "c"]
        assert (page.first_id, page.last_id, page.has_more) == ("a", "c", False)
        assert page._request_id
        model = await client.models.retrieve("org/b")
        assert model == page.data[1]
        assert (model.type, model.display_name, model.lifecycle) == ("model", "org/b", "active")
        assert model.created_at == datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)
        assert model.max_input_tokens == model.max_tokens == INFO.max_model_len
        assert [each.id async for each in client.models.list(limit=1)] == ["a", "org/b", "c"]
        page = await client.models.list(before_id="c", limit=1)
        assert ([each.id for each in page.data], page.has_more) == (["org/b"], True)
        assert [each.id for each in (await page.get_next_page()).data] == ["a"]
        assert (await client.models.list(lifecycle=["retired"])).data == []
        assert len((await client.models.list(lifecycle=["active", "retired"])).data) == 3
        serving.engine.die()
        assert (await client.models.retrieve("a")).max_tokens is None


async def test_anthropics_client_raises_its_own_classes_for_models() -> None:
    serving = Serving(api_keys=("none",))
    async with serving.listening() as address, claude(address) as client:
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.models.retrieve("other")
        assert missing.value.body["error"]["type"] == "not_found_error"
        assert missing.value.request_id
        for fields, name in (
            ({"limit": 0}, "limit"),
            ({"after_id": "other"}, "after_id"),
            ({"after_id": MODEL, "before_id": MODEL}, "before_id"),
            ({"lifecycle": ["new"]}, "lifecycle"),
        ):
            with pytest.raises(anthropic.BadRequestError, match=name):
                await client.models.list(**fields)
        with pytest.raises(anthropic.NotFoundError, match="GET / lists all"):
            await client.get("/v1/files", cast_to=object)
        with pytest.raises(anthropic.AuthenticationError):
            await client.with_options(api_key="other").models.list()


async def test_who_does_not_ask_in_anthropics_way_gets_openais_models() -> None:
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/models/other"):
        plain = await Serving().ask("GET", path, headers=[(b"host", b"a")])
        with_limit = await Serving().ask("GET", f"{path}?limit=none", headers=[(b"host", b"a")])
        assert plain.json() == with_limit.json()
        assert "request-id" not in plain.headers
    listed = (await Serving().ask("GET", "/v1/models", headers=[(b"host", b"a")])).json()
    assert listed.keys() == {"object", "data"}
    card = {"id", "object", "created", "owned_by", "root", "parent", "max_model_len"}
    assert listed["data"][0].keys() == card | {"permission", "limits"}


async def test_the_official_client_raises_its_own_classes() -> None:
    serving = Serving(api_keys=("other",))
    async with serving.listening() as address, sdk(address, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    serving = Serving()
    async with serving.listening() as address, sdk(address, max_retries=0) as client:
        ask = client.chat.completions.create
        with pytest.raises(openai.NotFoundError):
            await ask(model="other", messages=QUESTION)
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(model=MODEL, messages=QUESTION, max_tokens=10**6)
        assert refused.value.code == "context_length_exceeded"
        serving.engine.die()
        with pytest.raises(openai.InternalServerError):
            await ask(model=MODEL, messages=QUESTION)


async def test_a_connection_that_closes_aborts_and_one_that_stays_is_used_again() -> None:
    serving = Serving(spoken("word " * 100))
    async with serving.listening() as address:
        port = int(address.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):  # the same connection twice
            writer.write(post(chat_body(max_tokens=2)))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["usage"]["completion_tokens"] == 2
        writer.write(post(chat_body(stream=True, max_tokens=400)))
        await reader.readuntil(b"data: ")
        writer.close()
        while serving.client.num_open:
            await asyncio.sleep(0.001)
    assert serving.engine.aborts == [serving.engine.submits[-1].request_id]


async def test_broken_http_never_reaches_the_application() -> None:
    serving = Serving()
    async with serving.listening() as address:
        port = int(address.rsplit(":", 1)[1])
        for garbage in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"F" * 17
            + b"\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            writer.write_eof()
            answer = await reader.read()
            assert answer == b"" or answer.split()[1][:1] in (b"4",)
            writer.close()
        reply = await serving.call("GET", "/health")
        assert reply.status == 200


async def test_many_streams_at_once_each_get_their_own_text() -> None:
    texts = [f"answer number {i}" for i in range(INFO.max_num_seqs * 3)]
    serving = Serving(*map(spoken, texts))

    async def ask(client: Any) -> str:
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, stream=True, max_tokens=50
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async with serving.listening() as address, sdk(address) as client:
        answers = await asyncio.gather(*(ask(client) for _ in texts))
    assert sorted(answers) == sorted(texts)


CALL = (
    "<think>I must look it up.</think>\n<tool_call>price\n<arg_key>item</arg_key>\n"
    "<arg_value>red cup</arg_value>\n<arg_key>count</arg_key>\n<arg_value>2</arg_value>\n"
    "</tool_call>"
)
PRICE = {
    "type": "function",
    "function": {
        "name": "price",
        "parameters": {
            "type": "object",
            "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
        },
    },
}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_calls_a_tool_on_what_it_sees_and_answers_with_the_result(
    stream: bool,
) -> None:
    """Two rounds of the official client, whose own accumulation of streams puts the calls together
    and sends them back."""
    tools = ToolSettings.of(tokenizer(), "glm45", auto=True)
    serving = Serving(spoken(CALL), spoken("It costs 30."), tools=tools, parse_reasoning=True)
    messages: list[Any] = list(QUESTION)

    async def ask(client: Any) -> Any:
        if not stream:
            return await client.chat.completions.create(
                model=MODEL, messages=messages, tools=[PRICE], max_tokens=90
            )
        async with client.chat.completions.stream(
            model=MODEL, messages=messages, tools=[PRICE], max_tokens=90
        ) as events:
            async for _ in events:
                pass
            return await events.get_final_completion()

    async with serving.listening() as address, sdk(address) as client:
        choice = (await ask(client)).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.function.name == "price"
        arguments = json.loads(call.function.arguments)
        assert arguments == {"item": "red cup", "count": 2}
        messages.append(choice.message.model_dump(exclude_none=True))
        cost = str(15 * arguments["count"])
        messages.append({"role": "tool", "tool_call_id": call.id, "content": cost})
        choice = (await ask(client)).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("It costs 30.", "stop")
    last = memoryview(serving.engine.submits[-1].token_ids).cast("i").tolist()
    assert (
        tokenizer()
        .decode(last)
        .endswith(f"{CALL}<|observation|>\n<tool_response>\n30\n</tool_response><|assistant|>\n")
    )
    assert len(serving.engine.submits[-1].images) == 1


def post(body: bytes) -> bytes:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def test_the_official_client_repeats_what_may_succeed_and_nothing_else() -> None:
    serving = Serving(max_waiting=0)
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION}
    async with serving.listening() as address, sdk(address, max_retries=1) as client:
        held = serving.client.preparing(INFO.max_num_seqs)
        held.__enter__()
        asyncio.get_running_loop().call_later(0.3, held.__exit__, None, None, None)
        answer = await client.chat.completions.create(**ask)
        assert answer.choices[0].message.content == "Hello, world!"
        assert serving.metrics.rejections._value.get() == 1  # and repeated as Retry-After says
        before = len(serving.engine.submits)
        serving.state.lifecycle.is_draining = False
        failing = asyncio.create_task(client.chat.completions.create(**ask))
        while len(serving.engine.submits) == before or not serving.engine.running:
            await asyncio.sleep(0)
        serving.engine.fail(next(iter(serving.engine.running)), "step_failed", "it failed")
        with pytest.raises(openai.InternalServerError, match="it failed"):
            await failing
        assert len(serving.engine.submits) == before + 1
