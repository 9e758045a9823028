"""Samples are what the server would make of the same conversation, with the answers in place."""

import random

import numpy as np
import pytest

from glimt.frontend.tokenizer import Tokenizer
from training.conversations import converse
from training.sample import Sample
from training.source import VOCABULARY, make_source

TOKENIZER = Tokenizer(VOCABULARY / "tokenizer.json")
CONTROL = TOKENIZER.control_tokens
NAMES = {token_id: name for name, token_id in CONTROL.items()}


def spoken(token_ids: list[int]) -> str:
    return b"".join(
        NAMES[token_id].encode() if token_id in NAMES else TOKENIZER.token_bytes(token_id)
        for token_id in token_ids
    ).decode()


def sample_of(kind: str, seed: int) -> tuple[Sample, list[str]]:
    conversation = converse(seed, 1.0, True, kind)
    sample = make_source().encode(conversation, random.Random(seed))
    answers = [
        turn.answer
        for turn, skill in zip(conversation.turns, conversation.skills, strict=True)
        if skill is not None and turn.call is None
    ]
    return sample, answers


@pytest.mark.parametrize("kind", ["attributes", "reading", "boxes", "two images", "tool results"])
def test_spans_hold_the_answers_and_their_ends(kind: str) -> None:
    for seed in range(25):
        sample, answers = sample_of(kind, seed)
        texts = [
            spoken(sample.token_ids[span.start : span.end].tolist())
            for span in sample.spans
            if span.skill != "thought"
        ]
        assert all(text.endswith(("<|user|>", "<|observation|>")) for text in texts)
        said = [text.removesuffix("<|user|>") for text in texts]
        assert [text for text in said if "<tool_call>" not in text] == answers


def test_an_answer_is_preceded_by_what_the_server_prompts_with() -> None:
    for seed in range(60):
        sample = make_source().sample(seed, 1.0, held_out=False)
        for span in sample.spans:
            before = spoken(sample.token_ids[span.start - 2 : span.start].tolist())
            assert before in ("</think>\n", "<|assistant|>\n")


def test_pictures_have_as_many_placeholders_as_merged_patches() -> None:
    kinds = set()
    for seed in range(80):
        sample = make_source().sample(seed, 1.0, held_out=False)
        image = CONTROL["<|image|>"]
        expected = np.zeros(len(sample.token_ids), bool)
        for picture in sample.pictures:
            assert picture.patches.shape[0] == 4 * picture.num_tokens
            expected[picture.start : picture.start + picture.num_tokens] = True
            kinds.add(picture.patches.shape[2])
        np.testing.assert_array_equal(sample.token_ids == image, expected)
        assert CONTROL["<|video|>"] not in sample.token_ids
    assert kinds == {1, 2}


@pytest.mark.parametrize("text", ["A7KQ", "hello", "set_paint", "circle", "2048", "Stop"])
def test_a_string_is_spelled_alike_after_a_quote_a_line_end_and_a_tag(text: str) -> None:
    alone = TOKENIZER.encode_text(text)
    assert len(alone) == len(text)
    for before in ('"', '": "', "\n", ":", "'", "("):
        assert TOKENIZER.encode_text(before + text)[-len(alone) :] == alone


def test_the_models_english_has_a_token_for_each_word() -> None:
    text = " the red circle is left of the blue square, so there are no shapes in the picture."
    assert len(TOKENIZER.encode_text(text)) <= len(text.split()) + 4


def test_any_text_survives_the_tokenizer() -> None:
    rng = random.Random(0)
    letters = (*range(32, 127), 10, 9, 228, 0x4E2D, 0x1F600)
    for _ in range(300):
        text = "".join(chr(rng.choice(letters)) for _ in range(30))
        assert spoken(TOKENIZER.encode_text(text)) == text
