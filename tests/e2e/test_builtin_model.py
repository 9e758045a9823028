"""The built-in model behind a running server, in BF16 and in FP8: what it can do, asked as a user.

The pictures are drawn here and their answers are plain facts. Answers are greedy.
"""

import base64
import io
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from glimt.builtin.model import FOLDER
from tests.support.serving import Serving

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pytestmark = pytest.mark.skipif(
    not (FOLDER / "config.json").exists(), reason="this tree has no built-in model"
)

SIDE = 224
GROUND = (236, 232, 222)
COLOURS = {"red": (216, 38, 40), "green": (46, 158, 70), "blue": (44, 88, 216)}
BOX = re.compile(r"<\|begin_of_box\|>\[\[(\d+),(\d+),(\d+),(\d+)\]\]<\|end_of_box\|>")
RED_BOX = (28, 42, 98, 112)  # left, top, right, bottom, in pixels
FLAG_TOOL = {
    "type": "function",
    "function": {
        "name": "tag_plate",
        "description": "Marks a thing as seen.",
        "parameters": {
            "type": "object",
            "properties": {
                "tint": {"type": "string", "description": "the colour"},
                "outline": {"type": "string", "description": "the shape"},
            },
            "required": ["tint", "outline"],
        },
    },
}


def canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIDE, SIDE), GROUND)
    return image, ImageDraw.Draw(image)


def shapes() -> Image.Image:
    """A red circle at the top left, a blue square at the bottom right."""
    image, draw = canvas()
    draw.ellipse(RED_BOX, fill=COLOURS["red"])
    draw.rectangle((126, 126, 196, 196), fill=COLOURS["blue"])
    return image


def green_circle() -> Image.Image:
    image, draw = canvas()
    draw.ellipse((77, 77, 147, 147), fill=COLOURS["green"])
    return image


def sign(text: str) -> Image.Image:
    image, draw = canvas()
    draw.text((SIDE / 2, SIDE / 2), text, (18, 18, 20), ImageFont.load_default(40), anchor="mm")
    return image


def to_the_right() -> bytes:
    """A red circle that moves to the right for two seconds, as MP4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "20"})
        stream.width = stream.height = 112
        stream.pix_fmt = "yuv420p"
        for frame in range(16):
            image = Image.new("RGB", (112, 112), GROUND)
            left = 8 + 20 * (frame // 4)
            ImageDraw.Draw(image).ellipse((left, 40, left + 32, 72), fill=COLOURS["red"])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image))))
        container.mux(stream.encode())
    return buffer.getvalue()


def show(*media: Image.Image | bytes) -> list[dict[str, Any]]:
    """The parts of a message for pictures and videos."""
    parts = []
    for each in media:
        if isinstance(each, bytes):
            url = "data:video/mp4;base64," + base64.b64encode(each).decode()
            parts.append({"type": "video_url", "video_url": {"url": url}})
            continue
        buffer = io.BytesIO()
        each.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def user(text: str, *media: Image.Image | bytes) -> dict[str, Any]:
    return {"role": "user", "content": [*show(*media), {"type": "text", "text": text}]}


# FP8 weights are slow on a CPU, so they are asked by `make test-all`.
IN_BOTH = pytest.mark.parametrize(
    "client", ["bf16", pytest.param("fp8", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(scope="module")
def client(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    flags = ["--quantization", "fp8"] if request.param == "fp8" else []
    with (
        Serving(Path("builtin"), *flags, log=log) as serving,
        openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert ("weights_format=fp8" in log.read_text()) == (request.param == "fp8")
        yield client


def ask(client: Any, *messages: dict[str, Any], thinking: bool = False, **fields: Any) -> Any:
    """The whole answer."""
    return client.chat.completions.create(
        model="tiny",
        messages=list(messages),
        temperature=0,
        max_completion_tokens=256,
        extra_body={"chat_template_kwargs": {"enable_thinking": thinking}},
        **fields,
    )


def says(client: Any, text: str, *media: Image.Image | bytes, **fields: Any) -> str:
    choice = ask(client, user(text, *media), **fields).choices[0]
    assert choice.finish_reason == "stop"
    return str(choice.message.content)


@IN_BOTH
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What colour is the circle?", "Red."),
        ("What shape is blue?", "A square."),
        ("How many shapes are there?", "2"),
        ("Is there a green star?", "No."),
        ("Is the circle left or right of the square?", "Left."),
        ("Describe the picture.", "A red circle and a blue square."),
    ],
)
def test_it_answers_questions_about_a_picture(client: Any, question: str, answer: str) -> None:
    assert says(client, question, shapes()) == answer


@IN_BOTH
@pytest.mark.parametrize("text", ["STOP", "hotel", "K47"])
def test_it_reads_what_is_printed(client: Any, text: str) -> None:
    assert says(client, "What does it say?", sign(text)) == text


@IN_BOTH
def test_it_gives_a_box_in_the_familys_notation(client: Any) -> None:
    found = BOX.fullmatch(says(client, "Give the bounding box of the circle.", shapes()))
    assert found is not None
    given = [int(side) * SIDE / 1000 for side in found.groups()]
    assert overlap(given, RED_BOX) >= 0.6


def overlap(one: Any, other: Any) -> float:
    """Intersection over union."""

    def area(box: Any) -> float:
        return float(max(0, box[2] - box[0]) * max(0, box[3] - box[1]))

    both = [*(max(a, b) for a, b in zip(one[:2], other[:2], strict=True))]
    both += [min(a, b) for a, b in zip(one[2:], other[2:], strict=True)]
    return area(both) / (area(one) + area(other) - area(both))


@IN_BOTH
def test_it_thinks_if_asked_to_and_only_then(client: Any) -> None:
    question = user("How many shapes are there?", shapes())
    thoughtful = ask(client, question, thinking=True)
    message = thoughtful.choices[0].message
    assert "circle" in message.reasoning
    assert message.content == "2"
    assert "think>" not in message.content + message.reasoning
    assert thoughtful.usage.completion_tokens_details.reasoning_tokens > 0
    brief = ask(client, question)
    assert not getattr(brief.choices[0].message, "reasoning", None)
    assert brief.choices[0].message.content == "2"


@IN_BOTH
def test_it_calls_a_tool_that_it_has_never_seen_and_tells_what_that_said(client: Any) -> None:
    question = user("Call tag_plate for the circle.", shapes())
    choice = ask(client, question, tools=[FLAG_TOOL]).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "tag_plate"
    assert json.loads(call.function.arguments) == {"tint": "red", "outline": "circle"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "Saved as 4711."}
    history = [question, choice.message.model_dump(exclude_none=True), result]
    answer = ask(client, *history, tools=[FLAG_TOOL]).choices[0].message
    assert "Saved as 4711." in answer.content


@IN_BOTH
def test_a_streamed_call_is_the_same_call(client: Any) -> None:
    question = user("Call tag_plate for the square.", shapes())
    deltas = [
        call
        for chunk in ask(client, question, tools=[FLAG_TOOL], stream=True)
        for choice in chunk.choices
        for call in choice.delta.tool_calls or ()
    ]
    assert [call.function.name for call in deltas if call.function.name] == ["tag_plate"]
    arguments = "".join(call.function.arguments or "" for call in deltas)
    assert json.loads(arguments) == {"tint": "blue", "outline": "square"}


@IN_BOTH
def test_it_calls_no_function_that_was_not_offered(client: Any) -> None:
    """It copies some names badly: "count" is a word of its own that is never a name in training."""
    function = {**FLAG_TOOL["function"], "name": "count_badge"}
    question = user("Call count_badge for the circle.", shapes())
    tools = [{"type": "function", "function": function}]
    choice = ask(client, question, tools=tools).choices[0]
    [call] = choice.message.tool_calls
    assert call.function.name == "count_badge"
    assert set(json.loads(call.function.arguments)) <= {"tint", "outline"}


@IN_BOTH
def test_all_three_apis_give_its_answer_and_its_call(client: Any) -> None:
    """Chat is asked above; here the same through responses and messages, each by its own client."""
    [url] = [part["image_url"]["url"] for part in show(shapes())]
    texts = ("What colour is the circle?", "Call tag_plate for the square.")
    colour, call = (
        client.responses.create(
            model="tiny",
            input=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": url, "detail": "auto"},
                        {"type": "input_text", "text": text},
                    ],
                }
            ],
            tools=[{"type": "function", **FLAG_TOOL["function"], "strict": False}],
            temperature=0,
            reasoning={"effort": "none"},
        )
        for text in texts
    )
    assert colour.output_text == "Red."
    assert json.loads(call.output[-1].arguments) == {"tint": "blue", "outline": "square"}
    address = str(client.base_url).removesuffix("/v1/")
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    function = FLAG_TOOL["function"]
    tool = {"name": function["name"], "input_schema": function["parameters"]}
    with anthropic.Anthropic(base_url=address, api_key="none", max_retries=0) as other:
        told, called = (
            other.messages.create(
                model="tiny",
                max_tokens=128,
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "source": source},
                            {"type": "text", "text": text},
                        ],
                    }
                ],
                tools=[{**tool, "description": function["description"]}],
                thinking={"type": "disabled"},
                extra_body={"temperature": 0},
            )
            for text in texts
        )
    assert told.content[-1].text == "Red."
    assert called.content[-1].input == {"tint": "blue", "outline": "square"}


@IN_BOTH
def test_it_compares_two_images(client: Any) -> None:
    pictures = (shapes(), green_circle())
    question = "What colour is the circle in the second picture?"
    assert says(client, question, *pictures) == "Green."
    assert says(client, "Which picture has more shapes?", *pictures) == "The first."


@IN_BOTH
def test_it_sees_where_something_moves(client: Any) -> None:
    answer = says(client, "In which direction does the circle move?", to_the_right())
    assert "right" in answer.lower()


@IN_BOTH
def test_it_remembers_what_was_said(client: Any) -> None:
    first = user("What shape is blue?", shapes())
    history = [first, {"role": "assistant", "content": "A square."}]
    answer = ask(client, *history, user("And its colour?"))
    assert answer.choices[0].message.content == "Blue."


@IN_BOTH
def test_it_says_what_it_is_when_asked_beyond_itself(client: Any) -> None:
    assert "demo model" in says(client, "What is the capital of France?")


@IN_BOTH
def test_a_known_picture_is_cached_and_changes_no_answer(client: Any) -> None:
    picture = sign("EXIT")
    once = ask(client, user("What does it say?", picture))
    again = ask(client, user("What does it say?", picture))
    assert once.choices[0].message.content == again.choices[0].message.content == "EXIT"
    assert once.usage.prompt_tokens_details.cached_tokens == 0
    assert again.usage.prompt_tokens_details.cached_tokens > 16
    other = ask(client, user("What does it say?", sign("EDIT")))
    assert other.usage.prompt_tokens_details.cached_tokens < 16


@pytest.mark.parametrize("client", ["bf16"], indirect=True)
def test_the_example_of_the_readme_runs_as_it_is_printed(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Apart from the address, and the name under which the tests' servers serve."""
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for printed, here in (
        ("http://127.0.0.1:8000/v1", str(client.base_url)),
        ("glimt-builtin", "tiny"),
    ):
        assert printed in example
        example = example.replace(printed, here)
    (tmp_path / "build" / "demo").mkdir(parents=True)
    shapes().save(tmp_path / "build" / "demo" / "scene.png")
    (tmp_path / "example.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")["client"].close()
    answer = capsys.readouterr().out
    assert "circle" in answer
    assert "square" in answer
