"""Text as it comes: whole characters, and nothing of a stop string."""

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from glimt.frontend.detokenize import Detokenizer
from tests.support.prompts import tokenizer, whole_tokenizer

VOCAB_SIZE = whole_tokenizer().get_vocab_size()
_IDS = st.lists(st.integers(0, VOCAB_SIZE + 20), max_size=30)
_BYTES = st.lists(st.sampled_from(tokenizer().encode_text("a€🙂é\u0301")), max_size=30)
_CUTS = st.lists(st.integers(0, 30), max_size=8)


def _pushes(token_ids: list[int], cuts: list[int]) -> list[list[int]]:
    edges = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    return [token_ids[begin:end] for begin, end in itertools.pairwise(edges)]


def _read(detokenizer: Detokenizer, pushes: list[list[int]]) -> tuple[str, str | None]:
    deltas = [detokenizer.push(token_ids) for token_ids in pushes] + [detokenizer.finish()]
    stopped = [delta.stopped for delta in deltas if delta.stopped is not None]
    assert len(stopped) <= 1
    return "".join(delta.text for delta in deltas), stopped[0] if stopped else None


@given(st.one_of(_IDS, _BYTES), _CUTS)
def test_increments_put_together_are_the_text_of_the_whole(token_ids, cuts) -> None:
    text, stopped = _read(Detokenizer(tokenizer()), _pushes(token_ids, cuts))
    assert text == whole_tokenizer().decode(token_ids, skip_special_tokens=False)
    assert stopped is None
    text.encode("utf-8")  # no lone surrogate


@given(st.one_of(_IDS, _BYTES), _CUTS)
def test_skipped_tokens_leave_no_trace(token_ids, cuts) -> None:
    skip = frozenset(range(0, VOCAB_SIZE, 3))
    text, _ = _read(Detokenizer(tokenizer(), skip), _pushes(token_ids, cuts))
    kept = [token_id for token_id in token_ids if token_id not in skip]
    assert text == whole_tokenizer().decode(kept, skip_special_tokens=False)


@given(st.text(st.sampled_from("aé€🙂"), max_size=12))
def test_a_character_is_given_with_its_last_byte(text: str) -> None:
    detokenizer = Detokenizer(tokenizer())
    single_bytes = {tokenizer().token_bytes(i): i for i in range(256)}
    for character in text:
        *first, last = [single_bytes[bytes([byte])] for byte in character.encode()]
        assert [detokenizer.push([token_id]).text for token_id in first] == [""] * len(first)
        assert detokenizer.push([last]).text == character
    assert detokenizer.finish().text == ""


def _expected(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """The definition: the shortest beginning that ends in a stop string, and the longest such."""
    for end in range(len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            longest = max(ending, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


_LETTERS = st.text(st.sampled_from("abé"), max_size=24)
_STOPS = st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=5), max_size=3)


@given(_LETTERS, _STOPS, st.booleans(), _CUTS)
@example("aab", ["aab", "ab"], False, [1, 2])
@example("abababé", ["ababé"], False, list(range(7)))
@example("aabaaabaaaé", ["aabaaaé"], False, [])
def test_the_first_complete_stop_string_ends_the_text(text, stop, include, cuts) -> None:
    token_ids = tokenizer().encode_text(text)
    detokenizer = Detokenizer(tokenizer(), stop=stop, include_stop=include)
    shown = _read(detokenizer, _pushes(token_ids, cuts))
    assert shown == _expected(text, stop, include)
    if not include:
        assert not any(each in shown[0] for each in stop)


@given(_LETTERS, _STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(text, stop) -> None:
    detokenizer = Detokenizer(tokenizer(), stop=stop)
    so_far = shown = ""
    for token_id in tokenizer().encode_text(text):
        delta = detokenizer.push([token_id])
        if delta.stopped is not None:
            return
        so_far = tokenizer().decode([*tokenizer().encode_text(so_far), token_id])
        shown += delta.text
        if so_far.endswith("\ufffd"):
            return  # half a character: the next token completes it
        beginnings = [s[:k] for s in stop for k in range(1, len(s))]
        held = max((len(b) for b in beginnings if so_far.endswith(b)), default=0)
        assert len(shown) == len(so_far) - held


def test_nothing_follows_a_stop_string() -> None:
    detokenizer = Detokenizer(tokenizer(), stop=["END"])
    delta = detokenizer.push(tokenizer().encode_text("so END and more"))
    assert (delta.text, delta.stopped) == ("so ", "END")
    assert detokenizer.push(tokenizer().encode_text("END")).text == ""
    assert detokenizer.finish().text == ""


def test_a_stop_string_before_min_tokens_is_text() -> None:
    detokenizer = Detokenizer(tokenizer(), stop=["xx"])
    first = detokenizer.push(tokenizer().encode_text("axx"), may_stop=False)
    assert (first.text, first.stopped) == ("ax", None)
    assert detokenizer.push(tokenizer().encode_text("b"), may_stop=False).text == "xb"
    last = detokenizer.push(tokenizer().encode_text("xxc"))
    assert (last.text, last.stopped) == ("", "xx")


def test_a_stop_string_may_end_in_a_broken_character() -> None:
    broken = tokenizer().encode_text("€")[0]
    detokenizer = Detokenizer(tokenizer(), stop=["a\ufffd"])
    assert detokenizer.push([*tokenizer().encode_text("ba"), broken]).text == "b"
    end = detokenizer.finish()
    assert (end.text, end.stopped) == ("", "a\ufffd")
