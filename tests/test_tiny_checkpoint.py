"""The tiny checkpoint is what it claims: hub format, GLM's tokens, GLM's grammar."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from glimt.checkpoint import read_checkpoint
from glimt.models.config_json import read_config
from glimt.tiny.checkpoint import make_tiny_checkpoint
from glimt.tiny.config import Style, Variant

KINDS: list[tuple[Variant, Style]] = [
    ("moe", "4.5"),
    ("moe", "4.6"),
    ("dense", "4.1"),
    ("dense", "4.6"),
]
TOOL_CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Time in Oslo?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "need tool",
        "tool_calls": [
            {"function": {"name": "get_time", "arguments": {"city": "Oslo", "n": 2}}},
        ],
    },
    {"role": "tool", "content": "14:05"},
    {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "a clock"}]},
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind))
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str]:
    variant, style = request.param
    folder = tmp_path_factory.mktemp("tiny")
    return make_tiny_checkpoint(folder, variant=variant, style=style), variant, style


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_transformers_loads_it_without_a_complaint(made: tuple[Path, str, str]) -> None:
    folder, variant, _ = made
    names = {"moe": "Glm4vMoeForConditionalGeneration", "dense": "Glm4vForConditionalGeneration"}
    cls = getattr(transformers, names[variant])
    model, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 3.5e6
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert 1 < logits.std() < 5  # neither flat nor certain


def test_glimt_reads_it_without_a_note(made: tuple[Path, str, str]) -> None:
    folder, variant, style = made
    checkpoint = read_checkpoint(folder)
    config = read_config(checkpoint.config)
    assert checkpoint.notes == ()
    assert (config.text.moe is not None) == (variant == "moe")
    assert config.text.rope.theta == (500_000 if style == "4.6" else 10_000)
    assert checkpoint.video.sampler == ("glm46v" if style == "4.6" else "glm4v")
    assert len(config.eos_token_ids) == (4 if style == "4.1" else 3)


def test_the_config_names_the_tokenizers_media_tokens(made: tuple[Path, str, str]) -> None:
    folder, _, style = made
    config = read_checkpoint(folder).config
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for kind in ("image", "video"):
        assert config[f"{kind}_token_id"] == tokenizer.token_to_id(f"<|{kind}|>")
        start = tokenizer.token_to_id(f"<|begin_of_{kind}|>")
        assert config[f"{kind}_start_token_id"] == start
    first = tokenizer.token_to_id("<|endoftext|>")
    # As far from <|endoftext|> as in the published vocabularies (151329 on).
    assert tokenizer.token_to_id("<|observation|>") - first == 9
    assert tokenizer.token_to_id("<|image|>") - first == (14 if style == "4.1" else 34)
    assert tokenizer.token_to_id("<think>") - first == (16 if style == "4.1" else 21)
    assert tokenizer.get_vocab_size() < config["text_config"]["vocab_size"]


def test_any_text_survives_the_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "What is in the picture?\n\n  Wie geht's? 12345 🙂 日本語\t<x>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())


def test_thought_and_tool_marks_are_single_tokens_and_not_special(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = "<think></think><tool_call></tool_call><|begin_of_box|><|end_of_box|>"
    ids = tokenizer.encode(marks, add_special_tokens=False).ids
    assert len(ids) == 6
    assert tokenizer.decode(ids, skip_special_tokens=True) == marks
    special = tokenizer.encode("<|user|><|image|>", add_special_tokens=False).ids
    assert tokenizer.decode(special, skip_special_tokens=True) == ""


def render(folder: Path, messages: list[dict[str, Any]], **options: Any) -> str:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, ensure_ascii=True: json.dumps(
        value, ensure_ascii=ensure_ascii
    )
    template = environment.from_string((folder / "chat_template.jinja").read_text())
    return template.render(messages=messages, add_generation_prompt=True, **options)


CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}],
    },
    {"role": "assistant", "content": "<think>a cup, surely</think>\nA cup."},
    {"role": "user", "content": "And its colour?"},
]


def test_the_template_speaks_glms_grammar(folder: Path) -> None:
    assert render(folder, CHAT) == (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\n"
        "<|begin_of_image|><|image|><|end_of_image|>What is it?<|assistant|>\n"
        "<think></think>\nA cup.<|user|>\nAnd its colour?<|assistant|>\n"
    )


def test_thinking_is_switched_off_in_every_user_turn_once(folder: Path) -> None:
    chat = [CHAT[1], CHAT[2], {"role": "user", "content": "And?/nothink"}]
    text = render(folder, chat, enable_thinking=False)
    assert text.endswith("And?/nothink<|assistant|>\n<think></think>\n")
    assert text.count("/nothink") == 2
    assert "/nothink" not in render(folder, CHAT, enable_thinking=True)


def test_tool_calls_and_results_are_written_as_glm_writes_them(folder: Path) -> None:
    tools = [{"type": "function", "function": {"name": "get_time", "description": "Zeit für …"}}]
    text = render(folder, TOOL_CHAT, tools=tools)
    system, rest = text.split("<|user|>")
    assert "# Tools" in system
    assert f"<tools>\n{json.dumps(tools[0], ensure_ascii=False)}\n</tools>" in system
    assert rest == (
        "\nTime in Oslo?<|assistant|>\n<think>need tool</think>\n<tool_call>get_time\n"
        "<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
        "<arg_key>n</arg_key>\n<arg_value>2</arg_value>\n</tool_call><|observation|>\n"
        "<tool_response>\n14:05\n</tool_response>\n<tool_response>\n"
        "<|begin_of_image|><|image|><|end_of_image|>a clock\n</tool_response><|assistant|>\n"
    )


@pytest.mark.slow
def test_the_command_writes_the_same_as_the_function(folder: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(
        [sys.executable, root / "tools/make_tiny_checkpoint.py", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    assert "random weights" in run.stdout
    for file in folder.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_wishes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dense"):
        make_tiny_checkpoint(tmp_path, variant="moe", style="4.1")
    with pytest.raises(ValueError, match="at least 1"):
        make_tiny_checkpoint(tmp_path, shards=0)
    assert list(tmp_path.iterdir()) == []
