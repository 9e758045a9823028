"""Prompts: the lengths, totals and pictures that each dataset promises."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures

from glimt.bench.data.prompt import Image, Prompt, Turn
from glimt.bench.data.random_text import random_prompts
from glimt.bench.data.source import busted, prompts
from glimt.bench.data.tokens import Tokens, find_tokenizer
from glimt.bench.data.visionarena_like import (
    BLOCK,
    TEXT_TOKENS_PER_BLOCK,
    glm_image_tokens,
    image_size,
    text_lengths,
    visionarena_like_prompts,
)
from glimt.bench.load.bodies import BodyMaker, BodyStore
from glimt.bench.load.prepare import prepare
from glimt.bench.options import DataOptions, SamplingOptions, TargetOptions
from glimt.errors import BadSettings
from tests.support.bench_prompts import all_of, picture_of


def test_random_prompts_are_those_of_vllms_client(tokens: Tokens) -> None:
    """Made by vLLM 0.33's RandomDataset with the same tokenizer and seed 3."""
    options = DataOptions(random_input_len=24, random_output_len=16, random_range_ratio="0.5")
    made = [prompt.turns[0] for prompt in random_prompts(options, tokens, 6, 3)]
    assert [turn.output_tokens for turn in made] == [22, 17, 8, 9, 13, 15]
    assert [made[k].text_tokens for k in (0, 1, 4, 5)] == [32, 14, 16, 32]
    assert made[1].text == " m to andanitom n thllst f o in it"
    assert made[4].text == " qu train there are aft ans som say sigree wor comatureerature li let"


@pytest.mark.parametrize("length", [1, 7, 200])
def test_random_prompts_have_exactly_the_tokens_asked_for(tokens: Tokens, length: int) -> None:
    for prompt in all_of(tokens, random_input_len=length, random_prefix_len=5, seed=4):
        (turn,) = prompt.turns
        assert turn.text_tokens == tokens.count(turn.text)
        # Bytes that are no whole character become others when they are decoded and encoded again.
        if "\ufffd" not in turn.text:
            assert turn.text_tokens == length + 5


def test_prefixes_repeat_and_no_request_is_lost(tokens: Tokens) -> None:
    made = all_of(
        tokens,
        count=10,
        dataset_name="prefix_repetition",
        prefix_repetition_num_prefixes=3,
        prefix_repetition_prefix_len=30,
        prefix_repetition_suffix_len=10,
    )
    assert len(made) == 10
    assert len({prompt.turns[0].text[:20] for prompt in made}) == 3
    assert len({prompt.turns[0].text for prompt in made}) == 10


def test_random_images_have_the_sizes_of_their_buckets() -> None:
    made = all_of(
        None,
        dataset_name="random-mm",
        random_mm_bucket_config="{(40, 60, 1): 0.5, (30, 20, 1): 0.5, (9, 9, 16): 0}",
        random_mm_base_items_per_request=2,
    )
    sizes = {picture_of(image).size for prompt in made for image in prompt.turns[0].images}
    assert sizes == {(60, 40), (20, 30)}
    assert all(len(prompt.turns[0].images) == 2 for prompt in made)
    assert made[0].turns[0].images[0].pixels in (2400, 600)


@pytest.mark.parametrize(
    "text", ["{(9, 9, 16): 1}", "{}", "nonsense", "{(9, 9): 1}", "{(9,9,1): -1}"]
)
def test_buckets_that_cannot_be_made_are_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="bucket-config"):
        all_of(None, dataset_name="random-mm", random_mm_bucket_config=text)


def test_the_look_alike_has_the_published_totals() -> None:
    for seed in range(3):
        lengths = text_lengths(np.random.default_rng((seed, 1, 0)))
        assert len(lengths) == BLOCK
        assert lengths.sum() == TEXT_TOKENS_PER_BLOCK
        assert lengths.min() >= 3
        assert 22 <= np.median(lengths) <= 36
    sizes = [image_size(np.random.default_rng((0, 3, index))) for index in range(BLOCK)]
    assert np.mean([w * h for w, h in sizes]) / 1e6 == pytest.approx(1.07, abs=0.06)
    assert np.mean([glm_image_tokens(*size) for size in sizes]) == pytest.approx(1343, rel=0.06)
    assert all(1 / 3.1 < w / h < 3.1 for w, h in sizes)


def test_the_look_alikes_texts_have_exactly_their_tokens(tokens: Tokens) -> None:
    made = list(visionarena_like_prompts(DataOptions(), tokens, 8, 1))
    again = list(visionarena_like_prompts(DataOptions(), tokens, 4, 1))
    assert made[:4] == again
    for prompt in made:
        assert tokens.count(prompt.turns[0].text) == prompt.turns[0].text_tokens
        assert prompt.turns[0].output_tokens == 128
        assert len(prompt.turns[0].images) == 1


def test_its_pictures_cost_what_photographs_cost() -> None:
    """A photograph at this quality takes 0.1 to 0.3 bytes a pixel, and the power of its brightness
    falls with the square of the frequency; evenly random pixels take over a byte."""
    made = list(visionarena_like_prompts(DataOptions(), None, 6, 0))
    rates, slopes = [], []
    for prompt in made:
        (image,) = prompt.turns[0].images
        picture = picture_of(image)
        assert picture.format == "JPEG"
        assert picture.width * picture.height == image.pixels
        rates.append(len(image.url) * 0.75 / image.pixels)
        slopes.append(spectral_slope(np.asarray(picture.convert("L"), float)))
    assert 0.1 < np.mean(rates) < 0.3
    assert -3 < np.mean(slopes) < -1.7


def spectral_slope(grey: np.ndarray) -> float:
    side = min(grey.shape)
    square = (grey - grey.mean())[:side, :side] * np.outer(np.hanning(side), np.hanning(side))
    power = np.abs(np.fft.fftshift(np.fft.fft2(square))) ** 2
    y, x = np.indices(power.shape) - side // 2
    radius = np.hypot(x, y).astype(int).ravel()
    mean = np.bincount(radius, power.ravel()) / np.maximum(np.bincount(radius), 1)
    frequency = np.arange(4, side // 8)
    return float(np.polyfit(np.log(frequency), np.log(mean[frequency]), 1)[0])


def test_pictures_can_come_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Pictures.new("RGB", (50, 40)).save(tmp_path / "a.png")
    Pictures.new("RGB", (30, 20)).save(tmp_path / "more" / "b.JPG")
    (tmp_path / "c.txt").write_text("no picture")
    options = DataOptions(image_source=str(tmp_path))
    made = list(visionarena_like_prompts(options, None, 4, 1))
    shown = [picture_of(prompt.turns[0].images[0]).size for prompt in made]
    assert sorted(shown[:2]) == sorted(shown[2:]) == [(30, 20), (50, 40)]
    assert made[0].turns[0].images[0].pixels in (2000, 600)
    (tmp_path / "a.png").write_bytes(b"broken")
    for folder, words in ((tmp_path, "a.png cannot be read"), (tmp_path / "none", "a folder with")):
        with pytest.raises(BadSettings, match=words):
            list(visionarena_like_prompts(DataOptions(image_source=str(folder)), None, 2, 1))


def test_images_can_repeat_and_can_be_png() -> None:
    same = all_of(None, count=30, dataset_name="visionarena-like", image_dup_ratio=0.6)
    images = [prompt.turns[0].images[0].url for prompt in same]
    assert 5 <= len(set(images)) <= 22
    mixed = all_of(None, count=8, dataset_name="visionarena-like", image_format="mixed")
    kinds = {picture_of(prompt.turns[0].images[0]).format for prompt in mixed}
    assert kinds == {"JPEG", "PNG"}


def test_cache_busting_changes_text_and_pixels_and_keeps_the_size() -> None:
    (plain,) = all_of(None, count=1, dataset_name="visionarena-like", image_format="png")
    other, same = busted(plain, "a"), busted(plain, "a")
    assert other == same != busted(plain, "b")
    before, after = picture_of(plain.turns[0].images[0]), picture_of(other.turns[0].images[0])
    assert before.size == after.size
    assert np.asarray(before).tobytes() != np.asarray(after).tobytes()
    assert other.turns[0].text.startswith("[a] ")
    with pytest.raises(BadSettings, match="by address"):
        busted(Prompt(turns=(Turn(parts=("x", Image("http://a/b.jpg")), output_tokens=1),)), "a")


def test_busted_prompts_are_new_in_each_run_and_known_by_what_they_were_made_of() -> None:
    """So that no cache helps the same command later, and the two runs can still be paired."""
    options = DataOptions(random_input_len=5, cache_bust=True)
    runs = [list(prompts(options, None, 3, seed=0)) for _ in range(2)]
    texts = [prompt.turns[0].text for run in runs for prompt in run]
    assert len(set(texts)) == 6
    maker = BodyMaker(TargetOptions(), SamplingOptions(), "m", ignore_eos=True)
    plain = prompts(replace(options, cache_bust=False), None, 3, seed=0)
    digests = {
        prepare(made, maker, "openai", SamplingOptions(), 0, lambda _: None).digest
        for made in (*runs, plain)
    }
    assert len(digests) == 1


def test_sharegpt_takes_first_turns_of_a_fitting_length(tokens: Tokens, tmp_path: Path) -> None:
    def talk(question: str, answer: str) -> dict[str, Any]:
        return {"conversations": [{"value": question}, {"value": answer}]}

    good = talk("what is in this picture of mine", "a cat on a mat with a hat")
    rows = [good, talk("hi", "x"), {"conversations": []}, talk("word " * 3000, "fine by me then")]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(rows))
    options = {"dataset_name": "sharegpt", "dataset_path": str(path), "no_oversample": True}
    (made,) = all_of(tokens, **options)
    assert made.turns[0].text == "what is in this picture of mine"
    assert made.turns[0].output_tokens == tokens.count("a cat on a mat with a hat")
    assert all_of(tokens, output_len=9, **options)[0].turns[0].output_tokens == 9


def test_a_small_dataset_is_filled_up_unless_forbidden(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompt": "a", "output_tokens": 3}\n{"prompt": "b", "output_tokens": 4}\n')
    options = {"dataset_name": "custom", "dataset_path": str(path)}
    made = all_of(None, count=7, **options)
    assert {prompt.turns[0].text for prompt in made} == {"a", "b"}
    assert len(made) == 7
    assert len(all_of(None, count=7, no_oversample=True, **options)) == 2
    lengths = {p.turns[0].output_tokens for p in all_of(None, custom_output_len=-1, **options)}
    assert lengths == {3, 4}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset_name": "hf"}, "needs --dataset-path"),
        ({"dataset_name": "hf", "dataset_path": "a/b"}, "knows lmarena-ai"),
        ({"dataset_name": "custom"}, "needs --dataset-path"),
        ({"dataset_name": "custom", "dataset_path": "/no/such"}, "cannot be read"),
        ({"dataset_name": "random", "dataset_path": "x"}, "makes its prompts"),
        ({"dataset_name": "timed_trace", "dataset_path": "x"}, "give --tokenizer"),
        ({"random_range_ratio": "2"}, "below 1"),
        ({"random_batch_size": 2}, "embeddings"),
    ],
)
def test_what_cannot_be_had_is_said_with_its_cure(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        all_of(None, **options)


def test_a_tokenizer_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"has no tokenizer\.json"):
        find_tokenizer([str(tmp_path)], is_wanted=True)
    none, notes = find_tokenizer([str(tmp_path), None], is_wanted=False)
    assert none is None
    assert "estimates" in notes[0]


def test_conversations_are_put_together_from_single_prompts() -> None:
    made = all_of(
        None,
        count=3,
        dataset_name="random-mm",
        random_mm_bucket_config="{(8, 8, 1): 1}",
        turns=2,
        think_time=2.0,
    )
    for prompt in made:
        first, second = prompt.turns
        assert first.images
        assert not second.images
        assert second.pause_s > 0
    assert len({prompt.turns[1].pause_s for prompt in made}) == 3


def test_bodies_beyond_the_memory_limit_are_read_from_a_file() -> None:
    store = BodyStore(in_memory_bytes=10)
    bodies = [b"a" * 6, b"b" * 6, b"c" * 3, b"d" * 70_000]
    numbers = [store.add(body) for body in bodies]
    store.seal()
    assert [bytes(store[number]) for number in numbers] == bodies
    assert store.num_bytes == sum(map(len, bodies))


def test_the_same_seed_gives_the_same_prompts_and_another_others() -> None:
    for name in ("random", "random-mm", "prefix_repetition"):
        options = {"dataset_name": name, "random_mm_bucket_config": "{(8, 8, 1): 1}"}
        one = all_of(None, count=3, **options)
        assert one == all_of(None, count=3, **options)
        assert one != all_of(None, count=3, seed=1, **options)
    assert replace(DataOptions()) == DataOptions()
