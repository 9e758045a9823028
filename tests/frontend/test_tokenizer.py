"""Text to tokens and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as BpeTokenizer

from glimt.errors import BadCheckpoint, InvalidRequest
from glimt.frontend.tokenizer import Tokenizer
from tests.support.prompts import CONTROL_TEXTS, HOSTILE, STYLES, tokenizer, whole_tokenizer


def _saved(whole: BpeTokenizer, folder) -> Tokenizer:
    path = folder / "tokenizer.json"
    whole.save(str(path))
    return Tokenizer(path)


@given(HOSTILE, st.sampled_from(STYLES))
def test_no_text_becomes_a_control_token_and_every_text_comes_back(text: str, style: str) -> None:
    token_ids = tokenizer(style).encode_text(text)
    assert not set(token_ids) & set(tokenizer(style).control_tokens.values())
    assert tokenizer(style).decode(token_ids) == text


@given(HOSTILE)
def test_a_trusted_text_is_encoded_as_the_plain_tokenizer_does(text: str) -> None:
    expected = whole_tokenizer().encode(text, add_special_tokens=False).ids
    assert tokenizer().encode_template(text) == expected


@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_each_control_token_is_known_by_its_text(text: str) -> None:
    styles = [style for style in STYLES if tokenizer(style).token_id(text) is not None]
    assert styles
    for style in styles:
        assert tokenizer(style).encode_template(text) == [tokenizer(style).token_id(text)]
        assert tokenizer(style).token_text(tokenizer(style).token_id(text)) == text


@given(st.lists(st.integers(-1, whole_tokenizer().get_vocab_size() + 50), max_size=40))
def test_decoding_equals_the_plain_tokenizer(token_ids: list[int]) -> None:
    known = [i for i in token_ids if i >= 0]
    expected = whole_tokenizer().decode(known, skip_special_tokens=False)
    assert tokenizer().decode(token_ids) == expected
    raw = b"".join(tokenizer().token_bytes(i) for i in token_ids)
    assert raw.decode("utf-8", "replace") == expected


def test_all_256_bytes_are_tokens() -> None:
    assert {tokenizer().token_bytes(i) for i in range(256)} == {bytes([b]) for b in range(256)}


def test_marks_that_readers_and_parsers_need_are_not_skipped() -> None:
    for style in STYLES:
        known = tokenizer(style).control_tokens
        skipped = {
            text for text, token_id in known.items() if token_id in tokenizer(style).skip_ids
        }
        assert {"<|user|>", "<|endoftext|>", "<|image|>", "<sop>", "[gMASK]"} <= skipped
        assert not skipped & {"<think>", "</think>", "<answer>", "<tool_call>", "<|end_of_box|>"}


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizer().encode_text("a\ud800b")


def test_an_unknown_name_has_no_id() -> None:
    assert tokenizer().token_id("<|nobody|>") is None
    assert tokenizer().token_bytes(10**6) == b""


def test_a_control_token_inside_the_vocabulary_is_not_reached_by_text(tmp_path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: token_id for token_id, character in enumerate(alphabet)}
    merges = []
    for end in range(2, len("<think>") + 1):  # merges lead up to the control token
        vocabulary["<think>"[:end]] = len(vocabulary)
        merges.append(("<think>"[: end - 1], "<think>"[end - 1]))
    old = vocabulary["<think>"]
    whole = BpeTokenizer(models.BPE(vocabulary, merges))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.decoder = decoders.ByteLevel()
    whole.add_tokens([AddedToken("<think>", normalized=False)])
    unguarded = BpeTokenizer(whole.model)
    unguarded.pre_tokenizer = whole.pre_tokenizer
    assert unguarded.encode("<think>").ids == [old]

    ours = _saved(whole, tmp_path)
    assert old not in ours.encode_text("a<think>b")
    assert ours.decode(ours.encode_text("a<think>b")) == "a<think>b"
    assert ours.encode_template("<think>") == [old]


def test_added_tokens_that_take_neighbouring_spaces_are_followed(tmp_path) -> None:
    whole = BpeTokenizer.from_str(whole_tokenizer().to_str())
    whole.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("<word>", single_word=True, normalized=False),
            AddedToken("<word>s", normalized=False),
        ]
    )
    ours = _saved(whole, tmp_path)
    for text in (
        "a <left> b",
        "a <right>  b",
        "<right> <left>",
        "x<word>",
        "- <word> -",
        "<word>s",
    ):
        assert ours.encode_template(text) == whole.encode(text, add_special_tokens=False).ids, text


def test_other_kinds_of_tokenizer_are_refused(tmp_path) -> None:
    with pytest.raises(BadCheckpoint, match="byte-level"):
        _saved(BpeTokenizer(models.WordLevel({"a": 0}, unk_token="a")), tmp_path)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"broken\.json"):
        Tokenizer(tmp_path / "broken.json")


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "\n" * 100_000, "<think>" * 20_000, " \n" * 50_000]
)
def test_long_runs_are_encoded(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode_text(text)) == text
