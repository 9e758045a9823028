"""Flags and fields that only a whole server can show to work: one seat, FP8 keys, one bad token."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glimt.frontend.tokenizer import Tokenizer
from glimt.tiny.checkpoint import make_tiny_checkpoint
from tests.e2e.test_server import data_url, picture
from tests.support.media import grey_clip
from tests.support.serving import Serving

openai = pytest.importorskip("openai")

POISON = "Q"
FLAGS = [
    *("--scheduling-policy", "priority", "--max-num-seqs", "2", "--max-num-batched-tokens", "64"),
    *("--kv-cache-dtype", "fp8", "--max-model-len", "auto", "--kv-cache-memory-bytes", "2M"),
    *("--generation-config", "vllm", "--trust-remote-code", "--seed", "11"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose embedding of one letter is not a number."""
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("poison") / "moe")
    [token_id] = Tokenizer(folder / "tokenizer.json").encode_text(POISON)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(name for name in index if name.endswith("embed_tokens.weight"))
    tensors = load_file(folder / index[name])
    tensors[name][token_id] = torch.nan
    save_file(tensors, folder / index[name], {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def serving(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with Serving(checkpoint, *FLAGS, log=log) as serving:
        yield serving


@pytest.fixture(scope="module")
def client(serving: Serving) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: Any, content: Any, **fields: Any) -> Any:
    ours = {"ignore_eos": True, **fields.pop("ours", {})}
    fields = {"max_tokens": 8, "temperature": 0, **fields}
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(
        model="tiny", messages=messages, extra_body=ours, **fields
    )


def tokens(answer: Any) -> list[int]:
    return answer.choices[0].token_ids  # type: ignore[attr-defined,no-any-return]


def test_the_log_says_what_was_resolved(serving: Serving) -> None:
    log = serving.log.read_text()
    for part in ("kv_cache_dtype=float8_e4m3fn", "max_num_seqs=2", "media_workers=1", "no effect"):
        assert part in log


def test_a_request_whose_numbers_are_gone_fails_alone(serving: Serving, client: Any) -> None:
    """Pages are few, so the others' keys and values soon lie where its own lay."""
    ids = {"return_token_ids": True}
    texts = [f"Tell me about the sea and the sky. {number}" for number in range(4)]
    alone = [tokens(ask(client, text, ours=ids)) for text in texts]

    def poisoned(_: int) -> str:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, f"Tell me about the sea. {POISON}")
        return str(caught.value.body["code"])  # type: ignore[index]

    with ThreadPoolExecutor(8) as pool:
        bad = pool.map(poisoned, range(16))
        good = pool.map(lambda i: tokens(ask(client, texts[i % 4], ours=ids)), range(32))
        assert set(bad) == {"numerical_error"}
        assert list(good) == alone * 8
    assert "status=500" in serving.log.read_text()


def test_the_most_urgent_of_those_who_wait_goes_first(serving: Serving, client: Any) -> None:
    def waiting() -> float:
        text = client.get("/../metrics", cast_to=str)
        line = next(x for x in text.splitlines() if x.startswith("vllm:num_requests_waiting{"))
        return float(line.rpartition(" ")[2])

    def one_of(priority: int) -> None:
        label = {"X-Request-Id": f"priority-{priority}"}
        ask(client, "Me!", max_tokens=4, extra_headers=label, ours={"priority": priority})

    long: dict[str, Any] = {"max_tokens": 600, "stream": True, "ours": {"priority": -1}}
    seats: list[Any] = [ask(client, "Go on.", **long) for _ in range(2)]
    for seat in seats:
        next(seat)
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(one_of, priority) for priority in (5, 1, 4, 2, 3)]
        serving.wait_for(lambda: waiting() == 5)
        seats[0].close()
        for answer in answers:
            answer.result()
    seats[1].close()
    ends = re.findall(r"request finished .*label=priority-(\d)", serving.log.read_text())
    assert ends == ["1", "2", "3", "4", "5"]


def test_several_videos_and_pictures_may_be_in_one_message(client: Any) -> None:
    def video(num_frames: int, width: int) -> dict[str, Any]:
        clip = grey_clip(num_frames, 64, width)
        return {"type": "video_url", "video_url": {"url": data_url(clip, "video/mp4")}}

    def count(*parts: dict[str, Any]) -> int:
        usage = ask(client, [*parts, {"type": "text", "text": "What differs?"}]).usage
        assert usage is not None
        return usage.prompt_tokens

    one, other = video(8, 96), video(90, 64)
    still = {"type": "image_url", "image_url": {"url": data_url(picture(120, 80))}}
    none = count()
    together = count(one, still, other)
    assert together - none == sum(count(part) - none for part in (one, still, other))
    assert min(count(part) - none for part in (one, still, other)) > 4
    with pytest.raises(openai.BadRequestError, match="at most 2 video"):
        ask(client, [one, other, one])


@pytest.mark.parametrize(
    ("fields", "ours", "expected"),
    [
        ({}, {"allowed_token_ids": [300]}, [300] * 8),
        ({"logit_bias": {"310": 100}}, {}, [310] * 8),
        ({"logit_bias": {"310": 100}}, {"stop_token_ids": [310]}, [310]),
        ({"logit_bias": {"576": 100}}, {"ignore_eos": False}, [576]),
        ({"logit_bias": {"583": 100}}, {"ignore_eos": False}, [583]),
        ({"logit_bias": {"585": 100}}, {"ignore_eos": False}, [585]),
        ({"logit_bias": {"576": 100}}, {}, [576] * 8),
    ],
)
def test_fields_decide_which_tokens_come(
    client: Any, fields: dict[str, Any], ours: dict[str, Any], expected: list[int]
) -> None:
    assert tokens(ask(client, "Hm.", ours={"return_token_ids": True, **ours}, **fields)) == expected
