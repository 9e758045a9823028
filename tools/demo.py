"""`make demo`: start a server, send it a JPEG over HTTP, stream the answer, stop everything.

The model is a tiny random one, made on the spot: the answer is real in every step but its
meaning. Point the demo at a real checkpoint with --model.
"""

import argparse
import base64
import io
import random
import re
import subprocess
import sys
import time
from pathlib import Path

from openai import OpenAI
from PIL import Image, ImageDraw

from glimt.tiny.checkpoint import make_tiny_checkpoint

READY = re.compile(r"ready after [\d.]+ s: (http://\S+/v1)  serving (\S+)")
COLOURS = {"red": (210, 40, 40), "green": (40, 160, 70), "blue": (50, 80, 210)}


def draw_scene(seed: int) -> tuple[bytes, str]:
    """A JPEG with a coloured shape on a plain ground, and what it shows."""
    random.seed(seed)
    name = random.choice(sorted(COLOURS))
    shape = random.choice(["circle", "square"])
    image = Image.new("RGB", (320, 240), (238, 234, 226))
    draw = ImageDraw.Draw(image)
    box = (100, 60, 220, 180)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[name])
    else:
        draw.rectangle(box, fill=COLOURS[name])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue(), f"a {name} {shape}"


def start_server(model: Path) -> tuple[subprocess.Popen[str], str, str]:
    """(process, base URL, model name) of a server on a free port, once it is ready."""
    command = [sys.executable, "-m", "glimt", "serve", str(model), "--port", "0"]
    command += ["--served-model-name", "demo", "--reasoning-parser", "glm45"]
    print("$ glimt serve " + " ".join(command[4:]))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if process.stderr is None:
        raise RuntimeError("the server has no error stream")
    for line in process.stderr:
        print("  " + line.rstrip())
        if found := READY.search(line):
            return process, found[1], found[2]
    raise SystemExit("the server ended before it was ready")


def ask(url: str, model: str, picture: bytes, question: str, max_tokens: int) -> None:
    """Stream one answer and print it with its timings."""
    client = OpenAI(base_url=url, api_key="none")
    data = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    content = [
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "text", "text": question},
    ]
    started = time.perf_counter()
    first = None
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
        max_tokens=max_tokens,
        temperature=0.8,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    print("  answer: ", end="", flush=True)
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.perf_counter()
                print(choice.delta.content, end="", flush=True)
    ended = time.perf_counter()
    print()
    if usage is None or first is None:
        raise SystemExit("the stream ended without an answer")
    rate = (usage.completion_tokens - 1) / max(ended - first, 1e-9)
    print(
        f"  {usage.prompt_tokens} prompt tokens, {usage.completion_tokens} answer tokens, "
        f"first after {1000 * (first - started):.0f} ms, then {rate:.0f} tokens/s"
    )


def main() -> None:
    """Run the demo from nothing to the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"))
    parser.add_argument("--model", type=Path, help="a real checkpoint, in place of the tiny one")
    parser.add_argument("--max-tokens", type=int, default=48)
    options = parser.parse_args()
    began = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = options.model
    if model is None:
        model = options.folder / "tiny-random-glm4v-moe"
        if not (model / "config.json").exists():
            print(f"making a tiny random checkpoint in {model}")
            make_tiny_checkpoint(model)
        print("this model is random: it sees the picture and speaks, but it has learnt nothing")
    picture, truth = draw_scene(random.randrange(1000))
    (options.folder / "scene.jpg").write_bytes(picture)
    print(f"drew {options.folder / 'scene.jpg'}: {truth}")
    process, url, name = start_server(model)
    try:
        for question in ("What is in this picture?", "Which colour is it?"):
            print(f"asking: {question}")
            ask(url, name, picture, question, options.max_tokens)
    finally:
        process.terminate()
        process.wait(30)
    print(f"done, {time.perf_counter() - began:.1f} s in all; the server is stopped")


if __name__ == "__main__":
    main()
