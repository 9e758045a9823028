"""Prompts from files: each kind as vLLM's client reads it, and what cannot be read."""

import io
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image as Pictures

from glimt.bench.data.prompt import Image
from glimt.bench.data.tokens import Tokens
from glimt.errors import BadSettings
from tests.support.bench_prompts import all_of, picture_of


def test_custom_images_keep_their_order_and_come_as_data_on_demand(tmp_path: Path) -> None:
    Pictures.new("RGB", (9, 5)).save(tmp_path / "i.png")
    path = tmp_path / "m.jsonl"
    content = [
        {"type": "text", "text": "this"},
        {"type": "image_url", "image_url": {"url": "https://x/y.jpg"}},
        {"type": "image", "image": "i.png"},
    ]
    rows = [{"content": content}, {"prompt": "p", "image_files": ["i.png"]}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    options = {"dataset_name": "custom_image", "dataset_path": str(path), "disable_shuffle": True}
    first, second = all_of(None, count=2, **options)
    text, remote, local = first.turns[0].parts
    assert (text, remote) == ("this", Image("https://x/y.jpg"))
    assert local == Image(f"file://{tmp_path}/i.png")
    assert second.turns[0].parts == ("p", local)
    path.write_text(json.dumps(rows[1]))
    (inline,) = all_of(None, count=1, custom_ensure_client_side_data=True, **options)
    assert picture_of(inline.turns[0].images[0]).size == (9, 5)


def test_images_of_a_server_are_fetched_on_demand(tmp_path: Path) -> None:
    Pictures.new("RGB", (9, 5)).save(tmp_path / "i.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/i.png"
        path = tmp_path / "m.jsonl"
        path.write_text(json.dumps({"prompt": "p", "image_files": [url]}))
        options = {"dataset_name": "custom_image", "dataset_path": str(path)}
        (made,) = all_of(None, count=1, **options)
        assert made.turns[0].images == (Image(url),)
        (made,) = all_of(None, count=1, custom_ensure_client_side_data=True, **options)
        assert picture_of(made.turns[0].images[0]).size == (9, 5)
        path.write_text(json.dumps({"prompt": "p", "image_files": [f"{url}x"]}))
        with pytest.raises(BadSettings, match=r"i\.pngx cannot be read: HTTP Error 404"):
            all_of(None, count=1, custom_ensure_client_side_data=True, **options)
        server.shutdown()


def test_sharegpt_shows_the_image_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    talk = [{"value": "what do you see in this picture?"}, {"value": "a cat that sits on a mat"}]
    path.write_text(json.dumps([{"conversations": talk, "image": "https://x/y.jpg"}]))
    (made,) = all_of(None, count=1, dataset_name="sharegpt", dataset_path=str(path))
    assert made.turns[0].parts == (talk[0]["value"], Image("https://x/y.jpg"))


def test_burstgpt_takes_the_lengths_of_its_gpt4_rows(tokens: Tokens, tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,GPT-4,12,7,19,x\n6,ChatGPT,99,9,108,x\n7,GPT-4,12,0,12,x\n"
    )
    options = {"dataset_name": "burstgpt", "dataset_path": str(path), "no_oversample": True}
    (made,) = all_of(tokens, **options)
    assert (made.turns[0].text_tokens, made.turns[0].output_tokens) == (12, 7)


def test_a_traces_equal_hashes_are_equal_tokens(tokens: Tokens, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [
        {"timestamp": 100, "input_length": 25, "output_length": 4, "hash_ids": [7, 8]},
        {"timestamp": 900, "input_length": 32, "output_length": 5, "hash_ids": [7, 9]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    options = {
        "dataset_name": "timed_trace",
        "dataset_path": str(path),
        "timed_trace_sec_multiplier": 0.001,
    }
    first, second = all_of(tokens, count=2, **options)
    one, two = first.turns[0].token_ids, second.turns[0].token_ids
    assert (len(one), len(two)) == (25, 32)
    assert one[:16] == two[:16]
    assert one[16:] != two[16:25]
    assert (first.at_s, second.at_s) == (0.1, 0.9)
    assert all_of(tokens, count=2, seed=5, **options) == [first, second]
    path.write_text(path.read_text().replace("timestamp", "t").replace("hash_ids", "h"))
    named = {"timed_trace_label_timestamp": "t", "timed_trace_label_hash_ids": "h"}
    assert all_of(tokens, count=2, **options, **named) == [first, second]


def test_visionarena_is_read_from_parquet(tokens: Tokens, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    Pictures.new("RGBA", (30, 20), (9, 9, 9, 128)).save(buffer, "PNG")
    rows = [
        {
            "images": [{"bytes": buffer.getvalue(), "path": None}],
            "conversation": [
                [{"role": "user", "content": f"question {number}"}],
                [{"role": "assistant", "content": "yes"}],
                [{"role": "user", "content": "and then"}],
            ],
        }
        for number in range(5)
    ]
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / "train-0.parquet")
    options = {
        "dataset_name": "hf",
        "dataset_path": str(tmp_path),
        "hf_name": "lmarena-ai/VisionArena-Chat",
    }
    made = all_of(tokens, count=5, **options)
    assert {prompt.turns[0].text for prompt in made} == {f"question {n}" for n in range(5)}
    (image,) = made[0].turns[0].images
    assert (picture_of(image).size, picture_of(image).format) == ((30, 20), "JPEG")
    assert made[0].turns[0].output_tokens == 128
    assert made == all_of(tokens, count=5, **options)
    ordered = all_of(tokens, count=3, disable_shuffle=True, **options)
    assert [prompt.turns[0].text for prompt in ordered] == [f"question {n}" for n in range(3)]
    whole = all_of(tokens, count=4, no_stream=True, **options)
    assert len({prompt.turns[0].text for prompt in whole}) == 4
    talk = all_of(tokens, count=1, turns=2, **options)[0]
    assert [turn.text for turn in talk.turns[1:]] == ["and then"]
    assert not talk.turns[1].images


def test_other_datasets_of_pictures_are_read_from_parquet(tokens: Tokens, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    Pictures.new("RGB", (30, 20)).save(buffer, "PNG")
    picture = {"bytes": buffer.getvalue(), "path": None}
    answers = ("seven words make an answer of tokens", "no", "word " * 3000)
    talks = [
        [
            {"from": "human", "value": f"what is this, number {number}?"},
            {"from": "gpt", "value": answer},
            {"from": "human", "value": "and that?"},
        ]
        for number, answer in enumerate(answers)
    ]
    star = [{"question": "Which is it?\nOptions: A: this, B: that", "image": picture}]
    for name, rows in (
        ("talks", [{"conversations": talk, "image": picture} for talk in talks]),
        ("star", star),
    ):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    common = {"dataset_name": "hf", "disable_shuffle": True, "no_oversample": True}
    asked = {"dataset_path": str(tmp_path / "star.parquet"), "hf_name": "Lin-Chen/MMStar"}
    (made,) = all_of(tokens, **common, **asked)
    assert made.turns[0].text == "Which is it?"
    assert picture_of(made.turns[0].images[0]).size == (30, 20)
    asked = {
        "dataset_path": str(tmp_path / "talks.parquet"),
        "hf_name": "lmms-lab/LLaVA-OneVision-Data",
    }
    (made,) = all_of(tokens, count=3, **common, **asked)  # the others are too short and too long
    assert made.turns[0].output_tokens == tokens.count(answers[0])
    given = all_of(tokens, count=3, hf_output_len=9, turns=2, **common, **asked)
    assert [prompt.turns[0].output_tokens for prompt in given] == [9, 9, 9]
    assert given[0].turns[1].text == "and that?"
    assert len(all_of(tokens, no_stream=True, **{**common, "disable_shuffle": False}, **asked)) == 1


def test_without_the_hub_a_dataset_of_it_points_to_the_look_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadSettings, match="visionarena-like, which needs no network"):
        all_of(None, dataset_name="hf", dataset_path="lmarena-ai/VisionArena-Chat")
