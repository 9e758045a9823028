"""Log-probabilities of prompts: those of the model driven directly, however they are scheduled."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimt.engine.limits import SchedulerLimits
from glimt.engine.scheduler import Scheduler
from glimt.runner import prompt_logprobs
from glimt.wire import Output, TokenLogprobs
from tests.support.passes import Passes, Work, embed_prompt
from tests.support.pipeline import Pipeline
from tests.support.tiny_model import Album, Ask, make_ask, make_executor, make_prompt, tiny_model

ALBUM = Album()
LAYOUTS = ("t", "ttt", "tbtt", "tvt", "titt")


def direct(kind: str, layout: str, seed: int, num_top: int) -> list[TokenLogprobs]:
    """From the logits of one pass over the whole prompt."""
    prompt, one = make_prompt(layout, seed), make_ask(ALBUM, layout, seed)
    model = tiny_model(kind)
    counting = np.arange(prompt.length)[None].repeat(3, 0)
    positions = torch.from_numpy(counting if one.positions is None else one.positions).long()
    (logits,) = Passes(model).run([Work(0, embed_prompt(model, prompt), positions)])
    logprobs = logits.log_softmax(-1)
    judged = []
    for index, token in enumerate(prompt.token_ids[1:]):
        row = logprobs[index]
        top = torch.topk(row, num_top)
        rank = int((row > row[token]).sum()) + 1
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        judged.append(TokenLogprobs(token, float(row[token]), rank, tuple(pairs)))
    return judged


def assert_alike(ours: tuple[TokenLogprobs, ...] | None, theirs: list[TokenLogprobs]) -> None:
    assert ours is not None
    assert [each.token_id for each in ours] == [each.token_id for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert abs(one.rank - other.rank) <= 1  # near ties
        assert [value for _, value in one.top] == pytest.approx(
            [value for _, value in other.top], abs=1e-4
        )


def run(asks: list[Ask], kind: str, depth: int, **limits: int) -> list[list[Output]]:
    sizes = {"num_pages": 60, "page_size": 2, "max_num_seqs": 3, "max_model_len": 60, **limits}
    scheduler = Scheduler(
        SchedulerLimits(
            max_num_batched_tokens=sizes.pop("budget", 40),
            image_budget=12,
            image_cache_tokens=16,
            **sizes,
        )
    )
    executor = make_executor(tiny_model(kind), ALBUM, **sizes)
    for n, one in enumerate(asks):
        assert scheduler.add(one.submit(n)) == []
    outputs: list[list[Output]] = [[] for _ in asks]
    for output in Pipeline(scheduler, executor, depth).run():
        outputs[output.request_id].append(output)
    return outputs


@pytest.mark.parametrize("kind", ["glm4v", "glm4v_moe"])
@settings(max_examples=6)
@given(
    chosen=st.lists(
        st.tuples(st.sampled_from(LAYOUTS), st.integers(0, 1), st.sampled_from([None, 0, 3])),
        min_size=1,
        max_size=4,
    ),
    num_pages=st.integers(30, 60),
    budget=st.integers(4, 40),
    depth=st.integers(1, 2),
)
def test_chunks_company_preemption_and_known_prefixes_change_nothing(
    kind: str, chosen: list[tuple[str, int, int | None]], num_pages: int, budget: int, depth: int
) -> None:
    asks = [make_ask(ALBUM, layout, seed, prompt_logprobs=count) for layout, seed, count in chosen]
    answers = run(asks, kind, depth, num_pages=num_pages, budget=budget)
    for (layout, seed, count), outputs in zip(chosen, answers, strict=True):
        given = [each.prompt_logprobs for each in outputs]
        assert given[1:] == [None] * (len(outputs) - 1)
        if count is None:
            assert given[0] is None
        else:
            assert_alike(given[0], direct(kind, layout, seed, count))


def test_a_known_prefix_is_computed_again_for_who_wants_it_judged() -> None:
    plain = make_ask(ALBUM, "ttt", 0, max_tokens=1)
    judged = make_ask(ALBUM, "ttt", 0, max_tokens=1, prompt_logprobs=0)
    answers = run([plain, judged, plain], "glm4v", 1, max_num_seqs=1)
    assert [outputs[0].num_cached_tokens for outputs in answers] == [0, 0, 8]
    assert answers[0][0].token_ids == answers[1][0].token_ids
    assert_alike(answers[1][0].prompt_logprobs, direct("glm4v", "ttt", 0, 0))


def test_a_prompt_of_one_token_has_nothing_to_judge() -> None:
    one = make_ask(ALBUM, "t", 0, prompt_logprobs=2, max_tokens=1)
    one.token_ids = one.token_ids[:1]
    assert run([one], "glm4v", 1)[0][0].prompt_logprobs == ()


def test_logits_are_made_a_slice_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab_size = tiny_model("glm4v").lm_head.weight.shape[0]
    monkeypatch.setattr(prompt_logprobs, "MAX_SCORES", 2 * vocab_size)
    answers = run([make_ask(ALBUM, "ttt", 0, prompt_logprobs=2)], "glm4v", 2)
    assert_alike(answers[0][0].prompt_logprobs, direct("glm4v", "ttt", 0, 2))
