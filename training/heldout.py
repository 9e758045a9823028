"""Writes the held-out tasks that ship with the built-in model: one zip of pictures and questions.

    python -m training.heldout --out glimt/builtin/heldout.zip

Everything in it comes from the part of the world that training never draws: typefaces, pairs of
colour and shape, layouts, words, names of tools, forms of questions beyond the model, and seeds.
The pictures are frozen in the file, so the tasks are the same whatever fonts a machine has.
"""

import argparse
import io
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from training.conversation import Clip, Conversation
from training.conversations import converse
from training.scenes import fonts
from training.scenes.draw import draw

Json = dict[str, Any]

# Skill -> the kind of conversation in which it is asked.
SKILLS = {
    "attributes": "attributes",
    "yes/no": "yes/no",
    "counting": "counting",
    "relations": "relations",
    "reading": "reading",
    "boxes": "boxes",
    "two images": "two images",
    "motion": "motion",
    "tools": "tools",
    "tool results": "tool results",
    "description": "description",
    "chat": "chat",
    "absent": "absent",
    "beyond": "beyond",
}
FIRST_SEED = 10**9  # training counts from 0
FRAMES_PER_S = 8
PLAIN = 0.7  # share of pictures that are PNG; the others are JPEG


def tasks(skill: str, number: int) -> Iterator[tuple[Json, dict[str, bytes]]]:
    """(task, media files) for each of `number` questions; a third of them with thinking."""
    seed = FIRST_SEED
    made = 0
    while made < number:
        conversation = converse(seed, 1.0, held_out=True, kind=SKILLS[skill])
        seed += 1
        index = _asked(conversation, skill)
        if index is None or conversation.thinking != (made % 3 == 0):
            continue
        yield _task(f"{skill.replace('/', '-').replace(' ', '-')}-{made:04d}", conversation, index)
        made += 1


def _asked(conversation: Conversation, skill: str) -> int | None:
    """The assistant message to ask for: the last that is taught, if it is of this skill."""
    skills = conversation.skills
    if conversation.thinking:
        return len(skills) - 1 if skills[-1] == skill else None
    found = [i for i, taught in enumerate(skills) if taught == skill]
    if not found:
        return None
    needs_history = skill in ("chat", "tool results")
    return found[-1] if needs_history else found[0]


def _task(name: str, conversation: Conversation, index: int) -> tuple[Json, dict[str, bytes]]:
    turn = conversation.turns[index]
    files = {}
    addresses = []
    for number, clip in enumerate(conversation.clips):
        file, data = encode(clip, f"{name}-{number}")
        files[file] = data
        addresses.append(file)
    task: Json = {
        "id": name,
        "skill": turn.skill,
        "messages": _messages(conversation, index, addresses),
        "answer": turn.call if turn.call is not None else turn.answer,
        "metric": turn.metric,
        "thinking": conversation.thinking,
    }
    if conversation.tools:
        task["tools"] = conversation.tools
    return task, files


def _messages(conversation: Conversation, index: int, addresses: list[str]) -> list[Json]:
    """What comes before the assistant's message number `index`, as the HTTP API takes it."""
    waiting = iter(addresses)
    messages: list[Json] = []
    num_answers = 0
    for message in conversation.messages:
        if message["role"] == "assistant":
            if num_answers == index:
                break
            num_answers += 1
        messages.append(_message(message, waiting, num_answers))
    return messages


def _message(message: Json, addresses: Iterator[str], number: int) -> Json:
    plain = {key: value for key, value in message.items() if key != "reasoning_content"}
    if isinstance(plain["content"], list):
        plain["content"] = [
            part
            if part["type"] == "text"
            else {
                "type": f"{part['type']}_url",
                f"{part['type']}_url": {"url": next(addresses)},
            }
            for part in plain["content"]
        ]
    if "tool_calls" in plain:
        plain["tool_calls"] = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"]["arguments"]),
                },
            }
            for call in plain["tool_calls"]
        ]
    if plain["role"] == "tool":
        plain["tool_call_id"] = f"call_{number}"
    return plain


def encode(clip: Clip, name: str) -> tuple[str, bytes]:
    """(file name, its bytes): PNG or JPEG for a picture, MP4 for a film."""
    rng = random.Random(name)
    images = [draw(scene, rng.getrandbits(32)) for scene in clip.scenes]
    if clip.is_video:
        return f"{name}.mp4", _film(images)
    buffer = io.BytesIO()
    has_grain = clip.scenes[0].ground.noise > 0  # noise is what PNG cannot compress
    if rng.random() < PLAIN and not has_grain:
        images[0].save(buffer, "PNG", optimize=True)
        return f"{name}.png", buffer.getvalue()
    images[0].save(buffer, "JPEG", quality=rng.randint(75, 95))
    return f"{name}.jpg", buffer.getvalue()


def _film(images: list[Image.Image]) -> bytes:
    """H.264; a frame of the scene is what the sampler at two frames a second will take."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_S, options={"crf": "20"})
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        for image in images:
            for _ in range(FRAMES_PER_S // 2):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image))))
        container.mux(stream.encode())
    return buffer.getvalue()


def write(out: Path, number: int) -> None:
    """The zip: tasks.jsonl and the media that it names, the same bytes every time."""
    if fonts.held_out_faces() == (fonts.PILLOW,):
        raise SystemExit("the typefaces are missing: pip install 'glimt[training]'")
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with zipfile.ZipFile(out, "w") as archive:
        with tqdm(total=number * len(SKILLS), desc="held-out tasks") as bar:
            for skill in SKILLS:
                for task, files in tasks(skill, number):
                    lines.append(json.dumps(task))
                    for file, data in files.items():
                        _add(archive, file, data, zipfile.ZIP_STORED)
                    bar.update()
        text = "\n".join(lines) + "\n"
        _add(archive, "tasks.jsonl", text.encode(), zipfile.ZIP_DEFLATED)


def _add(archive: zipfile.ZipFile, name: str, data: bytes, method: int) -> None:
    """Without the time of day, which would change the file."""
    archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data, compress_type=method)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("glimt/builtin/heldout.zip"))
    parser.add_argument("--number", type=int, default=100, help="tasks of each skill")
    options = parser.parse_args()
    write(options.out, options.number)
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
