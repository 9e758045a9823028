"""Leads two models through the same answers, token by token, and compares all their logits.

A `Pupil` is a model as an engine runs it: the same loader, weights, kernels and paged KV cache
(FP8 where that was asked for), the same batches and the same forward pass; only nothing is drawn.
Both get the prompts that A's tokenizer, template and preprocessor make.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from glimt.checkpoint import read_checkpoint
from glimt.config_check import check
from glimt.engine.plan import NewRow, RowWork
from glimt.evaluation.divergence import NotComparable, Place
from glimt.evaluation.pixels import PixelBuffer, PixelStore
from glimt.evaluation.replies import Question, Script
from glimt.evaluation.subjects import Subject
from glimt.frontend.prompt import Prompt
from glimt.frontend.tokenizer import Tokenizer
from glimt.models.config_json import read_config
from glimt.offline.params import SamplingParams, request_of
from glimt.offline.prompts import Job, PromptMaker, read_language
from glimt.offline.wishes import settings_of
from glimt.processes.launch import resolve
from glimt.processes.loading import load_weights, pick_device, pick_dtype
from glimt.processes.sizes import longest_request, step_sizes
from glimt.processes.starting import Plan
from glimt.runner.batch import build_batch, gather_work
from glimt.runner.build import KvDtype, kv_layout, pixel_reader
from glimt.runner.encoder import ImageEncoder
from glimt.runner.forward import hidden_states
from glimt.runner.rows import RowTable
from glimt.wire import SamplingParams as WireParams

_MAX_ROWS = 128  # of logits that are compared at once


@dataclass(frozen=True)
class Lesson:
    """A prompt, and the tokens that follow it."""

    prompt: Prompt
    answer_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute: the last one's successor is not asked for."""
        return self.prompt.num_tokens + len(self.answer_ids) - 1


class Pupil:
    """One model. `arenas` is where the pixels of prompts lie."""

    def __init__(self, plan: Plan, arenas: Sequence[PixelBuffer]) -> None:
        """Load. Raises StartupError."""
        start = plan.engine
        self.device = pick_device(start.device)
        checkpoint = read_checkpoint(Path(start.model_path), overrides=start.hf_overrides)
        self.config = read_config(checkpoint.config, checkpoint.preprocessor_config)
        dtype = pick_dtype(start.dtype, self.config, self.device)
        longest = longest_request(start, self.config.text.max_position_embeddings)
        self._steps = step_sizes(start, self.device.type, longest)
        self._model, _ = load_weights(start, self.config, self.device, dtype)
        kv_dtype: KvDtype = "fp8" if start.kv_cache_dtype == "fp8" else "auto"
        self._layout = kv_layout(self._model, self._steps.page_size, dtype, kv_dtype)
        vision = self.config.vision
        self._encoder = ImageEncoder(
            self._model,
            pixel_reader(self._model, arenas, self.device),
            max_patches=self._steps.pass_tokens * vision.merge_size**2,
            device=self.device,
        )

    @property
    def max_tokens(self) -> int:
        """Tokens of one pass."""
        return self._steps.max_num_batched_tokens

    @torch.inference_mode()
    def logits(self, lessons: Sequence[Lesson]) -> list[Tensor]:
        """float32 [N, V] of each lesson: what the model expects at each of its N answer tokens."""
        rows, num_pages = self._take(lessons)
        kv = self._layout.allocate(num_pages, self.device)
        images = [image for lesson in lessons for image in lesson.prompt.images]
        self._encoder.start(images)
        if errors := self._encoder.finish(images):
            raise RuntimeError(f"images cannot be read: {errors}")
        hidden: list[list[Tensor]] = [[] for _ in lessons]
        for work in passes([lesson.num_tokens for lesson in lessons], self.max_tokens):
            rows.advance(work)
            batch = build_batch(rows, work, gather_work(rows, work))
            out_TD = hidden_states(self._model, batch, rows.tokens_RL, self._encoder, kv)
            first = 0
            for item in work:
                hidden[item.row].append(out_TD[first : first + item.num_tokens])
                first += item.num_tokens
        self._encoder.drop([image.content_hash for image in images])
        return [
            self._model.logits(torch.cat(parts)[-len(lesson.answer_ids) :])
            for parts, lesson in zip(hidden, lessons, strict=True)
        ]

    def _take(self, lessons: Sequence[Lesson]) -> tuple[RowTable, int]:
        """A row for each lesson with pages of its own, and how many pages there are."""
        page_size = self._steps.page_size
        rows = RowTable(
            max_rows=len(lessons),
            max_model_len=max(lesson.num_tokens for lesson in lessons),
            page_size=page_size,
            vocab_size=self.config.text.vocab_size,
            device=self.device,
        )
        num_pages = 0
        for row, lesson in enumerate(lessons):
            first, num_pages = num_pages, num_pages + -(-lesson.num_tokens // page_size)
            prompt = lesson.prompt
            rows.take(
                NewRow(
                    row=row,
                    token_ids=np.append(
                        prompt.token_ids, np.array(lesson.answer_ids[:-1], np.int32)
                    ),
                    num_prompt_tokens=prompt.num_tokens,
                    positions=prompt.positions,
                    rope_delta=prompt.rope_delta,
                    images=prompt.images,
                    sampling=WireParams(max_tokens=1),
                    page_ids=tuple(range(first, num_pages)),
                )
            )
        return rows, num_pages


def passes(lengths: Sequence[int], max_tokens: int) -> Iterator[list[RowWork]]:
    """The tokens of all rows in order, in passes of at most `max_tokens`."""
    work: list[RowWork] = []
    room = max_tokens
    for row, length in enumerate(lengths):
        start = 0
        while start < length:
            count = min(room, length - start)
            work.append(RowWork(row, start, count))
            start, room = start + count, room - count
            if room == 0:
                yield work
                work, room = [], max_tokens
    if work:
        yield work


def compare_logits(
    a: Subject, b: Subject, scripts: Iterator[Script], num_scripts: int
) -> list[list[Place]]:
    """The places of each answer. Both models are in memory at once.

    Raises StartupError for models that do not load, NotComparable for those whose tokens do not
    mean the same.
    """
    plan_a, plan_b = _plan(a), _plan(b)
    language = read_language(plan_a.server)
    _check_vocabularies(language.tokenizer, read_language(plan_b.server).tokenizer)
    with asyncio.Runner() as loop:
        store = PixelStore(plan_a.server)
        try:
            pupils = (Pupil(plan_a, store.arenas), Pupil(plan_b, store.arenas))
            _check_networks(*pupils)
            maker = PromptMaker(plan_a.server, language, store)
            places: list[list[Place]] = []
            with tqdm(total=num_scripts, desc="logits", unit="answer") as bar:
                for group in _groups(scripts, maker, loop, pupils[0].max_tokens):
                    logits = zip(*(pupil.logits(group) for pupil in pupils), group, strict=True)
                    places += [list(_places(a, b, lesson)) for a, b, lesson in logits]
                    store.forget(image for lesson in group for image in lesson.prompt.images)
                    bar.update(len(group))
            return places
        except torch.OutOfMemoryError:
            raise NotComparable("both models do not fit into the device's memory at once") from None
        finally:
            loop.run(store.close())


def _plan(subject: Subject) -> Plan:
    if subject.model is None:
        raise RuntimeError("a model that is not there cannot be loaded")
    settings = settings_of(subject.model, subject.settings)
    check(settings)
    return resolve(settings, lambda line: None)


def _groups(
    scripts: Iterator[Script], maker: PromptMaker, loop: asyncio.Runner, max_tokens: int
) -> Iterator[list[Lesson]]:
    """Lessons in groups that fit one pass; one that is longer comes alone."""
    group: list[Lesson] = []
    for script in scripts:
        lesson = Lesson(loop.run(maker.prompt(_job(script.question))), script.token_ids)
        if group and sum(each.num_tokens for each in (*group, lesson)) > max_tokens:
            yield group
            group = []
        group.append(lesson)
    if group:
        yield group


def _job(question: Question) -> Job:
    request = request_of(
        SamplingParams(),
        question.messages,
        chat_template_kwargs={"enable_thinking": question.thinking},
        tools=question.tools or None,
    )
    return Job(request, None, {})


@torch.inference_mode()
def _places(a_NV: Tensor, b_NV: Tensor, lesson: Lesson) -> Iterator[Place]:
    """A slice at a time: several arrays of float64 are needed of each."""
    token_N = torch.tensor(lesson.answer_ids, device=a_NV.device)
    for first in range(0, len(token_N), _MAX_ROWS):
        rows = slice(first, first + _MAX_ROWS)
        yield from _places_of(a_NV[rows], b_NV[rows].to(a_NV.device), token_N[rows])


def _places_of(a_NV: Tensor, b_NV: Tensor, token_N: Tensor) -> Iterator[Place]:
    """In float64: differences of distributions that hardly differ are what it is about."""
    log_a_NV, log_b_NV = a_NV.double().log_softmax(1), b_NV.double().log_softmax(1)
    kl_N = (log_a_NV.exp() * (log_a_NV - log_b_NV)).sum(1).clamp(min=0)
    same_N = log_a_NV.argmax(1) == log_b_NV.argmax(1)
    nll_a_N = -log_a_NV.gather(1, token_N[:, None])[:, 0]
    nll_b_N = -log_b_NV.gather(1, token_N[:, None])[:, 0]
    if not (kl_N.isfinite().all() and nll_b_N.isfinite().all()):
        raise NotComparable("logits of a model are not numbers")
    columns = (tensor.tolist() for tensor in (kl_N, same_N, nll_a_N, nll_b_N))
    yield from map(Place, *columns)


def _check_vocabularies(a: Tokenizer, b: Tokenizer) -> None:
    size = max(a.vocab_size, b.vocab_size)
    if any(a.token_bytes(i) != b.token_bytes(i) for i in range(size)):
        raise NotComparable("the two models have different vocabularies")


def _check_networks(a: Pupil, b: Pupil) -> None:
    """Logits of one width, and pictures cut in the same way."""

    def shape(pupil: Pupil) -> tuple[int, int, int]:
        vision = pupil.config.vision
        return pupil.config.text.vocab_size, vision.patch_size, vision.merge_size

    if shape(a) != shape(b):
        raise NotComparable(
            "the two models differ in the number of logits, or cut pictures otherwise"
        )
