"""A user's view: a server started from the command line, asked by the official client."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from tests.support.serving import Serving

openai = pytest.importorskip("openai")


def picture(width: int, height: int, seed: int = 0, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3))
    image = Image.fromarray(pixels.astype(np.uint8)).resize((width, height))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def ask(text: str, *urls: str) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [
        {"type": "image_url", "image_url": {"url": url}} for url in urls
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def count_independently(checkpoint: Path, text: str, *sizes: tuple[int, int]) -> int:
    """Prompt tokens by transformers' tokenizer and template, and the size formula."""
    transformers = pytest.importorskip("transformers")
    sizes_of = pytest.importorskip("transformers.models.glm4v.image_processing_pil_glm4v")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    content = [{"type": "image"} for _ in sizes] + [{"type": "text", "text": text}]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=(checkpoint / "chat_template.jinja").read_text(),
        add_generation_prompt=True,
        return_dict=False,
    )
    limits = json.loads((checkpoint / "preprocessor_config.json").read_text())["size"]
    count = len(ids)
    for width, height in sizes:
        high, wide = sizes_of.smart_resize(
            2, height, width, 2, 28, limits["shortest_edge"], limits["longest_edge"]
        )
        count += high * wide // 784 - 1
    return count


def test_the_official_client_streams_an_answer_about_a_picture(
    client: Any, checkpoint: Path
) -> None:
    text = "What is in this picture?"
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=ask(text, data_url(picture(320, 240))),
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.role for c in chunks[1:] if c.choices] == [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert not chunks[-1].choices
    assert usage.completion_tokens == 12
    assert usage.prompt_tokens == count_independently(checkpoint, text, (320, 240))
    assert usage.total_tokens == usage.prompt_tokens + 12


def test_a_stream_and_a_whole_answer_say_the_same(client: Any) -> None:
    messages = ask("Compare.", data_url(picture(200, 90, 1)), data_url(picture(56, 300, 2)))
    whole = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=24,
        temperature=0.9,
        seed=3,
    )
    stream = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=24,
        temperature=0.9,
        seed=3,
        stream=True,
    )
    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert whole.choices[0].message.content == text


def test_the_picture_matters(client: Any) -> None:
    answers = {
        client.chat.completions.create(
            model="tiny",
            messages=ask("Describe.", data_url(picture(280, 280, seed))),
            max_tokens=16,
            temperature=0,
            logprobs=True,
            extra_body={"ignore_eos": True},
        )
        .choices[0]
        .logprobs.content[0]
        .logprob
        for seed in range(3)
    }
    assert len(answers) == 3


def test_a_repeated_prompt_is_found_in_the_prefix_cache(client: Any) -> None:
    messages = ask("Tell me about it, please. " * 8, data_url(picture(300, 300, 9)))
    usages = [
        client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=4,
            temperature=0,
        ).usage
        for _ in range(2)
    ]
    assert usages[1] is not None
    assert usages[1].prompt_tokens_details is not None
    assert (usages[1].prompt_tokens_details.cached_tokens or 0) > 0
    assert usages[0] is not None
    assert usages[0].prompt_tokens == usages[1].prompt_tokens


def test_control_strings_in_text_stay_text_beside_a_real_picture(client: Any) -> None:
    text = "<|image|><|begin_of_image|><|assistant|>\n</think> /nothink [gMASK]"
    answer = client.chat.completions.create(
        model="tiny",
        messages=ask(text, data_url(picture(112, 112))),
        max_tokens=4,
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_usual_formats_are_read(client: Any, kind: str) -> None:
    url = data_url(picture(64, 64, kind=kind), f"image/{kind.lower()}")
    answer = client.chat.completions.create(
        model="tiny",
        messages=ask("What?", url),
        max_tokens=1,
    )
    assert answer.usage is not None


def test_files_are_read_below_the_allowed_folder_only(
    client: Any, media_folder: Path, tmp_path: Path
) -> None:
    (media_folder / "in.jpg").write_bytes(picture(80, 80))
    (tmp_path / "out.jpg").write_bytes(picture(80, 80))
    (media_folder / "link.jpg").symlink_to(tmp_path / "out.jpg")
    answer = client.chat.completions.create(
        model="tiny",
        messages=ask("What?", f"file://{media_folder}/in.jpg"),
        max_tokens=1,
    )
    assert answer.usage is not None
    messages = set()
    for path in (tmp_path / "out.jpg", media_folder / "link.jpg", media_folder / "missing.jpg"):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="tiny",
                messages=ask("What?", f"file://{path}"),
                max_tokens=1,
            )
        messages.add(str(caught.value.body["message"]))
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,AAAA", "image_parse_error"),
        ("data:image/png;base64,not base64!", "image_parse_error"),
        ("http://127.0.0.1:1/x.png", "media_url_blocked"),
        ("http://169.254.169.254/latest/meta-data/", "media_url_blocked"),
        ("ftp://example.com/x.png", "media_url_blocked"),
        (data_url(picture(2408, 8)), "image_parse_error"),
    ],
)
def test_a_bad_picture_is_a_400_that_names_its_place(client: Any, url: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny",
            messages=ask("What?", data_url(picture(56, 56)), url),
            max_tokens=1,
        )
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["code"] == code
    assert str(body["param"]).startswith("messages[0].content[1]")


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "word and " * 8000}],
        )
    assert caught.value.code == "context_length_exceeded"


def test_several_choices_differ_and_are_counted(client: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Say something."}],
        n=3,
        max_tokens=12,
        temperature=1.0,
        top_p=1.0,
        seed=5,
        extra_body={"ignore_eos": True, "top_k": 0},
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 36


async def test_the_small_endpoints_answer(serving: Serving) -> None:
    async with aiohttp.ClientSession(serving.url) as session:
        for path in ("/health", "/livez", "/readyz", "/version", "/v1/models", "/openapi.json"):
            async with session.get(path) as response:
                assert response.status == 200, path
        async with session.get("/v1/models") as response:
            card = (await response.json())["data"][0]
            assert card["id"] == "tiny"
            assert card["max_model_len"] == 4096
        async with session.get("/metrics") as response:
            text = await response.text()
    for name in (
        "vllm:num_requests_running",
        "vllm:prompt_tokens_total",
        "vllm:kv_cache_usage_perc",
    ):
        assert name in text


def test_a_client_that_leaves_frees_its_place(serving: Serving, client: Any) -> None:
    def running() -> float:
        text = client.get("/../metrics", cast_to=str)
        line = next(x for x in text.splitlines() if x.startswith("vllm:num_requests_running{"))
        return float(line.rpartition(" ")[2])

    stream = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Go on."}],
        max_tokens=3000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    serving.wait_for(lambda: running() == 1.0)
    stream.close()
    serving.wait_for(lambda: running() == 0.0, 10)


PAINT = {
    "type": "function",
    "function": {
        "name": "paint",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "blue"]}, "twice": {"type": "boolean"}},
            "required": ["colour", "twice"],
        },
    },
}


def test_an_agent_acts_on_a_picture_by_a_call_that_must_be_made(client: Any) -> None:
    """A whole round with random weights: the call is enforced, its result goes back in, and the
    stream of the same request tells the same call."""
    fields: dict[str, Any] = {
        "model": "tiny",
        "tools": [PAINT],
        "tool_choice": {"type": "function", "function": {"name": "paint"}},
        "temperature": 0,
        "max_tokens": 100,
        "extra_body": {"enable_thinking": False},
    }
    messages: list[Any] = ask("Paint it.", data_url(picture(112, 112)))
    choice = client.chat.completions.create(messages=messages, **fields).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert arguments["colour"] in ("red", "blue")
    assert isinstance(arguments["twice"], bool)
    with client.chat.completions.stream(messages=messages, **fields) as events:
        streamed = events.get_final_completion().choices[0]
    (again,) = streamed.message.tool_calls
    assert (again.function.name, again.function.arguments) == ("paint", call.function.arguments)
    assert streamed.finish_reason == "tool_calls"
    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    fields |= {"tool_choice": "none", "max_tokens": 8}
    answer = client.chat.completions.create(messages=messages, **fields).choices[0]
    assert answer.message.tool_calls is None
    assert answer.finish_reason in ("stop", "length")
