"""A token's logits do not depend on what else is computed, or on how its prompt was cut."""

from functools import cache
from itertools import zip_longest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glimt.models.glm4v import Glm4v
from tests.support.configs import tiny_config
from tests.support.oracle import Oracle
from tests.support.passes import Passes, Work, embed_prompt
from tests.support.token_prompts import PromptWriter

KINDS = ("glm4v_moe", "glm4v")


@cache
def model(kind: str) -> Glm4v:
    return Oracle(tiny_config(kind), seed=3).ours()


@cache
def row(kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, positions, and logits computed in one step, of one of four prompts."""
    writer = PromptWriter(seed)
    for part in range(seed):
        writer.image(part + 1, 2).text(5 * seed)
    prompt = writer.text(9).prompt
    x, positions = embed_prompt(model(kind), prompt), torch.arange(prompt.length).expand(3, -1)
    return x, positions, Passes(model(kind)).run([Work(0, x, positions)])[0]


def same(a: Tensor, b: Tensor) -> None:
    assert torch.equal(a.argmax(-1), b.argmax(-1))
    torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


# When a row joins, the lengths of its first chunks, and how many tokens at its end come singly.
SCHEDULES = st.tuples(
    st.integers(0, 3), st.lists(st.integers(1, 40), max_size=3), st.integers(0, 4)
)


def cut(length: int, chunks: list[int], singles: int) -> list[int]:
    """`length` as a sum: chunks, the rest in one, then `singles` ones."""
    parts, left = [], length - singles
    for chunk in chunks:
        parts.append(min(chunk, left))
        left -= parts[-1]
    return [part for part in (*parts, left) if part] + [1] * singles


@settings(max_examples=40)
@given(kind=st.sampled_from(KINDS), schedules=st.tuples(*[SCHEDULES] * 4))
def test_rows_cut_and_batched_in_any_way_give_the_same_logits(
    kind: str, schedules: tuple[tuple[int, list[int], int], ...]
) -> None:
    rows = [row(kind, seed) for seed in range(4)]
    passes = Passes(model(kind), num_rows=4)
    parts = [
        [0] * joins + cut(x.shape[0], chunks, singles)
        for (x, _, _), (joins, chunks, singles) in zip(rows, schedules, strict=True)
    ]
    got: list[list[Tensor]] = [[] for _ in rows]
    for lengths in zip_longest(*parts, fillvalue=0):
        works = []
        for index, length in enumerate(lengths):
            x, positions, _ = rows[index]
            new = slice(passes.context[index], passes.context[index] + length)
            if length:
                works.append(Work(index, x[new], positions[:, new]))
        for work, logits in zip(works, passes.run(works) if works else [], strict=True):
            got[work.row].append(logits)
    for pieces, (_, _, whole) in zip(got, rows, strict=True):
        same(torch.cat(pieces), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_encoded_the_same_alone_and_with_others(kind: str) -> None:
    prompt = PromptWriter(8).image(3, 2).image(1, 1).video(2, 2, 5).image(3, 2).prompt
    together = model(kind).encode_images(prompt.patches, prompt.grids)
    for patches, grid, expected in zip(prompt.patches, prompt.grids, together, strict=True):
        (alone,) = model(kind).encode_images([patches], [grid])
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(kind: str, dtype: torch.dtype) -> None:
    oracle = Oracle(tiny_config(kind), seed=3)
    prompt = PromptWriter(2).text(3).image(4, 6).text(5).prompt
    theirs = oracle.run(prompt)
    half = oracle.ours()
    for name, parameter in half.named_parameters():
        if not name.endswith("router.bias"):
            parameter.data = parameter.data.to(dtype)
    got = Passes(half, dtype=dtype).run([Work(0, embed_prompt(half, prompt), theirs.positions)])[0]
    error = (got - theirs.logits).abs()
    assert got.dtype == torch.float32
    assert error.median() < 0.15
