"""What an error tells its reader: where it is wrong, what may be there, what to do."""

import json
from typing import Any

import pytest

from tests.support.http_half import HEADERS, Serving, chat_body

CHAT = "/v1/chat/completions"
GOOD = chat_body()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body is empty; send JSON"),
        (b" \n", "the body is empty; send JSON"),
        (b"{'model': 1}", "object keys must be strings near byte 1"),
        (b"\xef\xbb\xbf" + GOOD, "invalid character near byte 0"),
        (GOOD + b"x", "trailing characters near byte 8"),
        (b'{"n": 1,}', "trailing comma in object near byte 8"),
        (GOOD[:-1], "it ends too early"),
        (b'{"model": "\\ud800"}', "half a surrogate pair"),
        (b'{"model": "\xff"}', "the body is not valid JSON in UTF-8"),
        # In what nobody knows, and in what a known field holds of unknown things.
        (GOOD.replace(b'"model"', b'"m\xf6del"'), "the body is not valid JSON in UTF-8"),
        (GOOD.replace(b'{"model"', b'{"x": "\xff", "model"'), "not valid JSON in UTF-8"),
        (GOOD.replace(b'"role"', b'"x": [{"\xe9": 1}], "role"'), "not valid JSON in UTF-8"),
        (GOOD.replace(b'{"model"', b'{"x": "\\q", "model"'), "not valid JSON in UTF-8"),
    ],
)
async def test_a_body_that_is_no_json_says_where(body: bytes, text: str) -> None:
    reply = await Serving().ask(body=body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    assert text in reply.error["message"]


async def test_a_body_of_another_kind_is_called_by_its_name() -> None:
    for path in (CHAT, "/v1/messages"):
        reply = await Serving().ask(path=path, body=b"[1]")
        assert reply.error["message"] == "the body: Expected `object`, got `array`"


async def test_a_choice_without_effect_says_what_may_be() -> None:
    url = {"url": "data:a", "detail": "ultra"}
    content = [{"type": "image_url", "image_url": url}]
    reply = await Serving().chat(messages=[{"role": "user", "content": content}])
    assert reply.error["param"] == "messages[0].content[0].image_url.detail"
    assert reply.error["message"].endswith("'ultra'; what may be: auto, high, low")


@pytest.mark.parametrize(
    ("tool", "param", "text"),
    [
        ({"name": "f"}, "tools[0].input_schema", "is missing"),
        ({"name": "f", "type": "custom"}, "tools[0].input_schema", "is missing"),
        ({"name": "f", "type": "web_search_20250305"}, "tools[0].type", "only type custom"),
    ],
)
async def test_a_tool_of_anthropics_clients_says_what_it_lacks(
    tool: dict[str, Any], param: str, text: str
) -> None:
    fields = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "tools": [tool]}
    reply = await Serving().ask(path="/v1/messages", body=json.dumps(fields).encode())
    assert reply.status == 400
    assert reply.error["message"].startswith(param)
    assert text in reply.error["message"]


async def test_addresses_of_what_is_kept_elsewhere_say_that_nothing_is_kept_here() -> None:
    for path in ("/v1/responses/resp_1", "/v1/files", "/v1/batches", "/v1/messages/batches"):
        reply = await Serving().ask("GET", path, headers=HEADERS)
        assert reply.status == 404
        assert "this server keeps nothing of a request" in reply.error["message"]
