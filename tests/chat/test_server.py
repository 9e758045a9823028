"""The client against servers that behave, and servers that do not."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from glimt.chat.server import AskFailed, ChatServer, Delta, base_url_of
from glimt.errors import BadSettings
from tests.support.scripted_server import (
    Scripted,
    ScriptedServer,
    answer,
    delta,
    end,
    event,
    refusal,
)

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer("first", "second") as server:
        yield server


def ask(server: ScriptedServer, *script: Scripted, key: str | None = None) -> list[Delta]:
    server.script += script

    async def deltas() -> list[Delta]:
        async with aclosing(ChatServer(server.url, key).ask(ASK)) as stream:
            return [each async for each in stream]

    return asyncio.run(deltas())


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1"),
        ("https://example.com/openai/v2", "https://example.com/openai/v2"),
    ],
)
def test_addresses_may_be_written_short(text: str, url: str) -> None:
    assert base_url_of(text) == url


@pytest.mark.parametrize(
    "text", ["", "ftp://x", "http://", "localhost:port", "http://me:pw@x", "http://x/v1?key=1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="--base-url"):
        base_url_of(text)


def test_models_are_listed_in_their_order_and_the_key_is_sent(scripted: ScriptedServer) -> None:
    server = ChatServer(scripted.url, "secret")
    assert asyncio.run(server.model_names()) == ["first", "second"]
    assert scripted.headers[-1]["Authorization"] == "Bearer secret"


def test_thoughts_are_read_under_both_names_and_not_twice(scripted: ScriptedServer) -> None:
    pieces = [
        delta(role="assistant", content=""),
        delta(reasoning="a", reasoning_content="a"),
        delta(reasoning_content="b"),
        delta(reasoning="c", content=None),
        delta(content="d", tool_calls=None),
        end("stop", prompt_tokens=3, completion_tokens=4),
    ]
    deltas = ask(scripted, Scripted(pieces))
    assert "".join(each.reasoning for each in deltas) == "abc"
    assert "".join(each.content for each in deltas) == "d"
    assert [each.usage.completion_tokens for each in deltas if each.usage] == [4]
    assert scripted.requests == [ASK]
    assert "Authorization" not in scripted.headers[-1]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (refusal(400, "too hot", "temperature"), r"\(400 Bad Request\): too hot \[field temper"),
        (refusal(401, "no"), "--api-key"),
        (refusal(429, "full", Retry_After="7"), r"full \(try again in 7 s\)"),
        (Scripted([b'{"error": "Unauthorized"}'], 401), "Unauthorized"),
        (Scripted([b'{"detail": "Not Found"}'], 404), "Not Found"),
        (Scripted([b"<html>bad gateway</html>"], 502, "text/html"), "bad gateway"),
        (Scripted([], 500), "no reason given"),
        (Scripted([], 307, headers={"Location": "http://x/"}), "sends on to http://x/"),
        (Scripted([b"{}"], content_type="application/json"), "not a stream"),
        (Scripted([delta(content="a")]), "before the answer was complete"),
        (Scripted([delta(content="a"), event("[DONE]")]), "before the answer was complete"),
        (Scripted([event({"error": {"message": "step failed"}})]), "step failed"),
        (Scripted([event("{")]), "no part of an answer"),
        (Scripted([event({"choices": 5})]), "no part of an answer"),
        (Scripted([b"data: " + b"x" * (17 << 20)]), "more than 16 MiB"),
    ],
)
def test_a_failure_says_what_it_was(
    scripted: ScriptedServer, script: Scripted, message: str
) -> None:
    with pytest.raises(AskFailed, match=message):
        ask(scripted, script)


def test_the_answer_after_a_failure_is_whole(scripted: ScriptedServer) -> None:
    with pytest.raises(AskFailed):
        ask(scripted, refusal(500, "bad luck"))
    assert "".join(each.content for each in ask(scripted, answer("all is well"))) == "all is well "


def test_nothing_at_the_address_says_which_and_what_to_start(scripted: ScriptedServer) -> None:
    with pytest.raises(AskFailed, match=r"127\.0\.0\.1:9/v1 \(Connection refused\).*glimt serve"):
        asyncio.run(ChatServer("http://127.0.0.1:9/v1").model_names())


def test_a_list_of_no_models_asks_for_a_name(scripted: ScriptedServer) -> None:
    for body in (b'{"data": []}', b'{"data": [{"name": 1}]}', b"<html>"):
        scripted.models = Scripted([body], content_type="application/json")
        with pytest.raises(AskFailed, match="model"):
            asyncio.run(ChatServer(scripted.url).model_names())


def test_no_proxy_comes_between_a_chat_and_its_own_machine(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert asyncio.run(ChatServer(scripted.url).model_names())[0] == "first"
