"""Samples for the trainer: conversations drawn, rendered by the model's own chat template, and
tokenised and cut into patches by the very code that serves requests."""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from glimt.frontend.template import ChatTemplate
from glimt.frontend.tokenizer import Tokenizer
from glimt.media.patches import patchify
from glimt.media.resize import resize
from glimt.media.sizes import smart_resize
from glimt.wire import ImageSettings
from training.conversation import Clip, Conversation
from training.conversations import converse
from training.export import TEMPLATE
from training.sample import Picture, Sample, Span
from training.scenes.cells import cell_labels
from training.scenes.draw import as_photographed, draw
from training.scenes.scene import Scene
from training.shape import IMAGE_LIMITS, VIDEO_LIMITS

VOCABULARY = Path(__file__).parent / "vocabulary"
IMAGES = ImageSettings(min_pixels=IMAGE_LIMITS[0], max_pixels=IMAGE_LIMITS[1])
VIDEOS = ImageSettings(min_pixels=VIDEO_LIMITS[0], max_pixels=VIDEO_LIMITS[1])
_JPEG_SHARE = 0.25
_FRAMES_PER_STEP = 2


class SceneSource:
    """The `Source` of the built-in model."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer(VOCABULARY / "tokenizer.json")
        self._template = ChatTemplate(TEMPLATE.read_text("utf-8"))
        self._ids = self._tokenizer.control_tokens
        self._newline = self._tokenizer.encode_text("\n")[0]

    def sample(self, rng_seed: int, progress: float, held_out: bool) -> Sample:
        """The conversation of this seed as tokens, patches and spans."""
        conversation = converse(rng_seed, progress, held_out)
        rng = random.Random(rng_seed)
        return self.encode(conversation, rng)

    def encode(self, conversation: Conversation, rng: random.Random) -> Sample:
        """As the server would, with the answers in place."""
        text = self._template.render(
            conversation.messages,
            tools=conversation.tools,
            add_generation_prompt=False,
            enable_thinking=conversation.thinking,
        )
        token_ids = self._tokenizer.encode_template(text)
        ends = "<|observation|>" if conversation.turns[-1].call is not None else "<|user|>"
        token_ids.append(self._ids[ends])
        expanded, pictures = self._with_media(token_ids, conversation.clips, rng)
        spans = self._spans(expanded, conversation)
        return Sample(np.array(expanded, np.int32), tuple(pictures), tuple(spans))

    def _with_media(
        self, token_ids: list[int], clips: list[Clip], rng: random.Random
    ) -> tuple[list[int], list[Picture]]:
        """Placeholders expanded: an image to its tokens, a video to a run for each step."""
        expanded: list[int] = []
        pictures: list[Picture] = []
        waiting = iter(clips)
        image = self._ids["<|image|>"]
        begin, end = self._ids["<|begin_of_image|>"], self._ids["<|end_of_image|>"]
        for token_id in token_ids:
            if token_id == image:
                pictures.append(picture(next(waiting), rng, len(expanded)))
                expanded += [image] * pictures[-1].num_tokens
            elif token_id == self._ids["<|video|>"]:
                for second, step in enumerate(video_steps(next(waiting), rng)):
                    expanded.append(begin)
                    pictures.append(replace(step, start=len(expanded)))
                    expanded += [image] * pictures[-1].num_tokens
                    expanded += [end, *self._tokenizer.encode_text(str(second))]
            else:
                expanded.append(token_id)
        return expanded, pictures

    def _spans(self, token_ids: list[int], conversation: Conversation) -> list[Span]:
        """Where the answers are. With thinking on, an answer begins with its thought."""
        turn_ends = {self._ids[role] for role in ("<|user|>", "<|observation|>")}
        close = self._ids["</think>"]
        starts = [i for i, token in enumerate(token_ids) if token == self._ids["<|assistant|>"]]
        spans = []
        for start, skill in zip(starts, conversation.skills, strict=True):
            if skill is None:
                continue
            end = next(i for i in range(start, len(token_ids)) if token_ids[i] in turn_ends) + 1
            answer = token_ids.index(close, start) + 2  # past the line end
            if conversation.thinking:
                spans.append(Span(start + 2, answer, "thought"))
                skill = f"{skill} after thinking"
            spans.append(Span(answer, end, skill))
        return spans


@cache
def make_source() -> SceneSource:
    """The one source of this process."""
    return SceneSource()


def picture(clip: Clip, rng: random.Random, start: int) -> Picture:
    """The one scene of a clip, drawn, perhaps through a JPEG file, and cut into patches."""
    image = draw(clip.scenes[0], rng.getrandbits(32))
    if rng.random() < _JPEG_SHARE:
        image = as_photographed(image, rng)
    return replace(_picture([image], clip.scenes[0], IMAGES), start=start)


def video_steps(clip: Clip, rng: random.Random) -> list[Picture]:
    """A picture of each pair of frames, at no place yet; what it shows is that of its first."""
    images = [draw(scene, rng.getrandbits(32)) for scene in clip.scenes]
    if rng.random() < 1.5 * _JPEG_SHARE:
        images = [as_photographed(image, rng) for image in images]
    return [
        _picture(images[i : i + _FRAMES_PER_STEP], clip.scenes[i], VIDEOS, len(images))
        for i in range(0, len(images), _FRAMES_PER_STEP)
    ]


def _picture(
    images: list[Image.Image], scene: Scene, settings: ImageSettings, num_frames: int = 2
) -> Picture:
    frames = np.stack([np.asarray(image) for image in images])
    height, width = smart_resize(num_frames, frames.shape[1], frames.shape[2], settings)
    buffer = np.empty(len(images) * 3 * height * width, np.uint8)
    patchify(resize(frames, height, width), buffer, settings.patch_size, settings.merge_size)
    rows, columns = height // settings.patch_size, width // settings.patch_size
    shape = (rows * columns, 3, len(images), settings.patch_size, settings.patch_size)
    merge = settings.merge_size
    labels = cell_labels(scene, rows // merge, columns // merge)
    return Picture(0, rows, columns, buffer.reshape(shape), labels)
