"""Requests that come to a whole server at once and begin with the same: what is computed, and when.

    python benchmarks/bursts.py                        the built-in model on a CPU, one minute
    python benchmarks/bursts.py --words 1200 --kinds picture system        prompts of several steps
    python benchmarks/bursts.py build/glm-4.5v --size 1344 784 \
        --load-format dummy --quantization fp8         a full-size one on a GPU

What follows the options is given to `glimt serve`. For each kind of burst, of so many rounds with
words and pictures that were never sent before: prompt tokens that came and that were computed (the
rest was found in the prefix cache), and milliseconds to the first token: the median round's mean
over its requests and its last, and the best round's mean. Kinds:

    question      one request, --burst answers (`n`)
    questions     four of them, of different words and pictures
    picture       the same system prompt and picture, another question each
    system        the same system prompt, another question each
    pictures      the same system prompt, another picture each
    other         nothing in common
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image
from serving import served

WORDS = (
    "the a red blue small large round old new fast slow sign map table house river tree of in on"
)
SOURCES = re.compile(r'prompt_tokens_by_source_total{[^}]*source="(local_\w+)"} ([\d.e+]+)')

KINDS = ["question", "questions", "picture", "system", "pictures", "other"]

Body = dict[str, Any]


class Bursts:
    """Makes requests whose words and pictures are new."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        sampled = {"n": options.burst, "temperature": 1.0}
        self.kinds: dict[str, Callable[[], list[Body]]] = {
            "question": lambda: [self._body(self._system(), self._picture()) | sampled],
            "questions": lambda: [
                body
                for _ in range(4)
                for body in [self._body(self._system(), self._picture()) | sampled]
            ],
            "picture": lambda: self._bodies(self._system(), self._picture()),
            "system": lambda: self._bodies(self._system(), None),
            "pictures": lambda: self._each(self._system()),
            "other": lambda: self._each(None),
        }
        self._random = np.random.default_rng()
        self._model = model
        self._count: int = options.burst
        self._num_words: int = options.words
        self._size: tuple[int, int] = tuple(options.size)
        self._num_tokens: int = options.tokens

    def _bodies(self, system: str, picture: str | None) -> list[Body]:
        return [self._body(system, picture) for _ in range(self._count)]

    def _each(self, system: str | None) -> list[Body]:
        systems = (system or self._system() for _ in itertools.count())
        return [self._body(next(systems), self._picture()) for _ in range(self._count)]

    def _body(self, system: str, picture: str | None) -> Body:
        parts: list[Body] = [{"type": "text", "text": f"What is {self._words(12)}?"}]
        if picture is not None:
            parts.insert(0, {"type": "image_url", "image_url": {"url": picture}})
        return {
            "model": self._model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": parts},
            ],
            "stream": True,
            "temperature": 0,
            "max_tokens": self._num_tokens,
            "ignore_eos": True,
        }

    def _system(self) -> str:
        return self._words(self._num_words)

    def _words(self, count: int) -> str:
        return " ".join(self._random.choice(WORDS.split(), count))

    def _picture(self) -> str:
        coarse = self._random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(self._size).save(buffer, "JPEG")
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


async def first_tokens_s(session: aiohttp.ClientSession, url: str, body: Body) -> list[float]:
    """Seconds to the first text of each of its answers, thoughts included."""
    began = time.perf_counter()
    first: dict[int, float] = {}
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise SystemExit(f"the server refused: {await response.text()}")
        async for line in response.content:
            text = line.decode().strip().removeprefix("data: ")
            if not text.startswith("{"):
                continue
            for choice in json.loads(text)["choices"]:
                if any(choice["delta"].get(key) for key in ("content", "reasoning_content")):
                    first.setdefault(choice["index"], time.perf_counter() - began)
    return list(first.values())


async def sources(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Prompt tokens since the start, by where their KV came from."""
    async with session.get(f"{url}/metrics") as response:
        return {name: float(value) for name, value in SOURCES.findall(await response.text())}


async def measure(url: str, model: str, options: argparse.Namespace) -> None:
    """All kinds, one round of each after the other."""
    bursts = Bursts(model, options)
    times: dict[str, list[list[float]]] = {kind: [] for kind in options.kinds}
    came: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    computed: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 20) as session:
        for number in range(options.rounds + 1):
            for kind in options.kinds:
                bodies = bursts.kinds[kind]()
                before = await sources(session, url)
                found = await asyncio.gather(
                    *(first_tokens_s(session, url, body) for body in bodies)
                )
                after = await sources(session, url)
                if number == 0:
                    continue  # it warms up
                times[kind].append([1000 * second for seconds in found for second in seconds])
                came[kind].append(sum(after.values()) - sum(before.values()))
                computed[kind].append(after["local_compute"] - before["local_compute"])
    print(
        f"{options.burst} at once          tokens came   computed   "
        "first token ms: mean   last   best"
    )
    for kind, rounds in times.items():
        means = [statistics.mean(each) for each in rounds]
        print(
            f"{kind:<24}{statistics.median(came[kind]):9.0f}{statistics.median(computed[kind]):11.0f}"
            f"{statistics.median(means):23.0f}{statistics.median(map(max, rounds)):7.0f}"
            f"{min(means):7.0f}"
        )


def main() -> None:
    """Serve, measure, end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--burst", type=int, default=8, help="requests, or answers, at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--words", type=int, default=100, help="of a system prompt")
    parser.add_argument("--size", type=int, nargs=2, default=[448, 448], help="of a picture")
    parser.add_argument("--tokens", type=int, default=4, help="of an answer")
    options, of_server = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with served(options.model, *of_server, log=log) as (url, model):
            asyncio.run(measure(url, model, options))


if __name__ == "__main__":
    main()
