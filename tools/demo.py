"""`make demo`: three questions to the built-in model about fresh pictures, the truth beside each.

A scene is composed and drawn, so the truth is known. The server is started as a user starts it,
asked through the official client, and stopped.
"""

import argparse
import base64
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # training/ is not installed

from glimt.builtin import model as builtin
from glimt.chat.local_server import LocalServer
from glimt.chat.screen import Screen, look_of
from glimt.chat.text import harmless
from training.scenes import pairs, tools
from training.scenes.ask import counting
from training.scenes.draw import draw
from training.scenes.scene import Recipe, Scene, compose
from training.scenes.turn import Turn

if TYPE_CHECKING:
    from openai import OpenAI

SIDE = 224  # pixels
MAX_TOKENS = 96


@dataclass(frozen=True)
class Question:
    """What is asked, about which pictures, and how."""

    title: str
    turn: Turn
    pictures: tuple[Path, ...]
    thinking: bool = False
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Answer:
    """A streamed answer as it comes together."""

    thoughts: str = ""
    content: str = ""
    name: str = ""
    arguments: str = ""

    @property
    def line_feed(self) -> str:
        """What ends the line before the answer's, if something was shown on it."""
        return "\n" if self.thoughts or self.content or self.name else ""

    def is_right(self, turn: Turn) -> bool:
        """Whether it is the true one."""
        if turn.call is None:
            return self.content.strip() == turn.answer
        try:
            call = {"name": self.name, "arguments": json.loads(self.arguments or "{}")}
        except ValueError:
            return False
        return call == turn.call


def until_made(make: Callable[[], Turn | None]) -> Turn:
    """Askers decline what cannot be asked of a scene; there is always something else."""
    while (turn := make()) is None:
        pass
    return turn


def questions(folder: Path, seed: int) -> Iterator[Question]:
    """A fresh pair of pictures, saved below `folder`, and three questions about them."""
    rng = random.Random(seed)
    recipe = Recipe(SIDE, SIDE, num_shapes=rng.randint(3, 5))
    first, second = pairs.compose_pair(recipe, rng)
    while not first.shapes:
        first, second = compose(recipe, rng), first
    files = tuple(folder / name for name in ("scene.png", "second-scene.png"))
    for scene, file in zip((first, second), files, strict=True):
        draw(scene).save(file)
        print(f"drew {file}: {told(scene)}")
    yield Question(
        "with thinking", until_made(lambda: counting(first, rng)), files[:1], thinking=True
    )
    tool = tools.make_tool(rng, ["colour", "shape"], held_out=True)
    call = until_made(lambda: tools.use([tool], first, rng))
    yield Question("with a tool it has never seen", call, files[:1], tools=[tool.definition])
    yield Question("two images", until_made(lambda: pairs.compare(first, second, rng)), files)


def told(scene: Scene) -> str:
    """What the scene shows, from left to right."""
    return ", ".join(f"{item.size} {item.colour} {item.shape}" for item in scene.shapes)


def ask(client: "OpenAI", model: str, question: Question, screen: Screen) -> None:
    """Stream one answer and print it, the true one, and its timings."""
    turn = question.turn
    print(f"\n{screen.look.bold(turn.question)}  ({question.title})")
    for tool in question.tools:
        print(screen.look.dim(f"  tool: {signature(tool['function'])}"))
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": as_url(file)}} for file in question.pictures
    ]
    content.append({"type": "text", "text": turn.question})
    fields: dict[str, Any] = {"tools": question.tools} if question.tools else {}
    started_s = time.perf_counter()
    first_s = None
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
        max_completion_tokens=MAX_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"chat_template_kwargs": {"enable_thinking": question.thinking}},
        **fields,
    )
    answer, usage = Answer(), None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if show(choice.delta, answer, screen):
                first_s = first_s or time.perf_counter()
    ended_s = time.perf_counter()
    truth = turn.answer if turn.call is None else as_call(turn.call["name"], turn.call["arguments"])
    print(f"\n  truth: {truth}   {'right' if answer.is_right(turn) else 'WRONG'}")
    if usage is None or first_s is None:
        raise SystemExit("the stream ended without an answer")
    rate = (usage.completion_tokens - 1) / max(ended_s - first_s, 1e-9)
    timings = (
        f"  {usage.prompt_tokens} prompt tokens, {usage.completion_tokens} answer tokens, "
        f"first after {1000 * (first_s - started_s):.0f} ms, then {rate:.0f} tokens/s"
    )
    print(screen.look.dim(timings))


def show(delta: Any, answer: Answer, screen: Screen) -> bool:
    """Print what a delta adds; whether it adds anything."""
    thought = getattr(delta, "reasoning", None) or ""
    answer.thoughts += thought
    pieces = [screen.look.dim(harmless(thought))] if thought else []
    if delta.content:
        if not answer.content:
            pieces.append(f"{answer.line_feed}  model: ")
        answer.content += delta.content
        pieces.append(harmless(delta.content))
    for call in delta.tool_calls or ():
        if call.function.name:
            pieces.append(f"{answer.line_feed}  model: {harmless(call.function.name)} ")
            answer.name += call.function.name
        answer.arguments += call.function.arguments or ""
        pieces.append(harmless(call.function.arguments or ""))
    print("".join(pieces), end="", flush=True)
    return bool(pieces)


def as_call(name: str, arguments: Any) -> str:
    """A call as it is shown."""
    return f"{name} {json.dumps(arguments)}"


def signature(function: dict[str, Any]) -> str:
    """What a tool is to the model, in a line."""
    fields = function["parameters"]["properties"]
    told = (f"{name}: {field.get('description', field['type'])}" for name, field in fields.items())
    return f"{function['name']}({', '.join(told)})"


def as_url(file: Path) -> str:
    """A PNG as a data: address."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def main() -> None:
    """Run the demo from nothing to the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"))
    parser.add_argument("--model", help="a checkpoint of your own")
    parser.add_argument("--seed", type=int, help="of the scene; default: a fresh one")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    began_s = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    screen = Screen(sys.stdout, sys.stdout, look_of(sys.stdout, os.environ))
    served = options.model or builtin.NAME
    print(f"$ glimt serve {served}")
    parsers = {"GLIMT_TOOL_CALL_PARSER": "glm45", "GLIMT_ENABLE_AUTO_TOOL_CHOICE": "true"}
    with LocalServer(served, options.folder / "server.log", os.environ | parsers) as server:
        from openai import OpenAI  # a second of imports, while the server starts

        asked = list(questions(options.folder, seed))
        url = server.wait_until_ready(lambda line, s: screen.status(f"starting, {s:.0f} s: {line}"))
        screen.status("")
        print(f"ready after {time.perf_counter() - began_s:.1f} s: {url}")
        with OpenAI(base_url=url, api_key=server.api_key, max_retries=0) as client:
            model = client.models.list().data[0].id
            for question in asked:
                ask(client, model, question, screen)
    print(
        f"\ndone, {time.perf_counter() - began_s:.1f} s in all (seed {seed}); nothing runs any more"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the server has ended with it
        sys.exit("\nstopped; nothing runs any more")
