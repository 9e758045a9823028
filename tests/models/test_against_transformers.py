"""The networks against transformers, in float32, on random tiny checkpoints of both kinds."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.configs import SPELLINGS, tiny_config
from tests.support.oracle import Oracle
from tests.support.passes import Passes, Work, embed_prompt, greedy
from tests.support.token_prompts import Prompt, PromptWriter

KINDS = ("glm4v_moe", "glm4v")
TOLERANCE = 1e-4  # of logits with a standard deviation near 3

PROMPTS: dict[str, Prompt] = {
    "text": PromptWriter(1).text(40).prompt,
    "one image": PromptWriter(2).text(3).image(4, 6).text(5).prompt,
    "images of odd sizes": PromptWriter(3)
    .text(2)
    .image(1, 1)
    .image(13, 2)
    .text(4)
    .image(3, 11)
    .text(1)
    .prompt,
    "video": PromptWriter(4).text(4).video(3, 2, 5).text(3).prompt,
    "two videos": PromptWriter(5).video(2, 3, 1).text(2).video(1, 2, 2).text(3).prompt,
    "mixed": PromptWriter(6).image(2, 3).text(1).video(2, 1, 3).text(3).image(5, 1).text(2).prompt,
}


@pytest.fixture(scope="module", params=KINDS)
def oracle(request: pytest.FixtureRequest) -> Oracle:
    return Oracle(tiny_config(request.param), seed=11)


def logits_error(oracle: Oracle, prompt: Prompt, config: dict[str, Any] | None = None) -> float:
    """Largest difference of logits between transformers and our model."""
    theirs, model = oracle.run(prompt), oracle.ours(config)
    work = Work(0, embed_prompt(model, prompt), theirs.positions)
    ours = Passes(model, max_len=prompt.length).run([work])[0]
    return float((ours - theirs.logits).abs().max())


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_equal_transformers(oracle: Oracle, name: str) -> None:
    assert logits_error(oracle, PROMPTS[name]) <= TOLERANCE


@pytest.mark.parametrize("name", ["one image", "video"])
def test_the_oracle_for_mixed_prompts_agrees_with_transformers_own_forward(
    oracle: Oracle, name: str
) -> None:
    whole, injected = oracle.run(PROMPTS[name]), oracle.run(PROMPTS[name], inject=True)
    assert torch.equal(whole.logits, injected.logits)


@pytest.mark.parametrize("name", ["text", "one image", "two videos"])
def test_greedy_continuations_equal_transformers_generate(oracle: Oracle, name: str) -> None:
    prompt = PROMPTS[name]
    positions, delta = oracle.positions(prompt)
    ours = greedy(oracle.ours(), prompt, positions, delta, steps=12)
    assert ours == oracle.generate(prompt, 12)
    assert len(set(ours)) > 1


def test_images_encoded_together_equal_transformers_pooled_output(oracle: Oracle) -> None:
    prompt = PROMPTS["images of odd sizes"]
    inputs = prompt.transformers_inputs()
    theirs = oracle.model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    ours = oracle.ours().encode_images(prompt.patches, prompt.grids)
    assert [image.shape[0] for image in ours] == [1, 26, 33]
    for image, expected in zip(ours, theirs.pooler_output, strict=True):
        torch.testing.assert_close(image, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_every_spelling_of_the_rope_settings_gives_the_same_logits(kind: str, theta: float) -> None:
    prompt = PROMPTS["one image"]
    oracle = Oracle(tiny_config(kind, theta=theta))
    for spelling in SPELLINGS:
        for factor in (0.5, None):
            config = tiny_config(kind, spelling=spelling, theta=theta, partial_rotary_factor=factor)
            assert logits_error(oracle, prompt, config) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_theta_is_noticed(kind: str) -> None:
    oracle = Oracle(tiny_config(kind, theta=10000.0))
    wrong = tiny_config(kind, theta=500000.0)
    assert logits_error(oracle, PROMPTS["text"], wrong) > 100 * TOLERANCE


# --------------------------------------------------------------------------- drawn configurations


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A config.json of either kind with drawn sizes."""
    kind = draw(st.sampled_from(KINDS))
    num_kv_heads = draw(st.integers(1, 3))
    num_heads = num_kv_heads * draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([8, 16, 24]))
    num_layers = draw(st.integers(1, 3))
    text: dict[str, Any] = {
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "num_hidden_layers": num_layers,
        "intermediate_size": draw(st.sampled_from([16, 24, 40])),
        "hidden_size": num_heads * head_dim,
        "rms_norm_eps": draw(st.sampled_from([1e-5, 1e-3])),
    }
    if kind == "glm4v_moe":
        num_groups = draw(st.sampled_from([1, 1, 2, 4]))
        groups_per_token = draw(st.integers(1, num_groups))
        group_size = draw(st.integers(2, 4))
        text |= {
            "head_dim": head_dim,
            "attention_bias": draw(st.booleans()),  # transformers' dense model ignores the key
            "hidden_size": draw(st.sampled_from([24, 32, 64])),
            "first_k_dense_replace": draw(st.integers(0, num_layers)),
            "moe_intermediate_size": draw(st.sampled_from([8, 24])),
            "n_routed_experts": num_groups * group_size,
            "num_experts_per_tok": draw(st.integers(1, groups_per_token * group_size)),
            "n_shared_experts": draw(st.integers(1, 2)),
            "n_group": num_groups,
            "topk_group": groups_per_token,
            "norm_topk_prob": draw(st.booleans()),
            "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        }
    patch_size = draw(st.sampled_from([2, 7]))
    vision_heads = draw(st.integers(1, 3))
    vision = {
        "depth": draw(st.integers(0, 2)) + 1,
        "num_heads": vision_heads,
        "hidden_size": vision_heads * draw(st.sampled_from([8, 16])),
        "patch_size": patch_size,
        "image_size": patch_size * draw(st.integers(2, 6)),
        "spatial_merge_size": draw(st.integers(1, 3)),
        "temporal_patch_size": draw(st.integers(1, 2)),
        "intermediate_size": draw(st.sampled_from([16, 24])),
    }
    return tiny_config(kind, theta=draw(st.sampled_from([1e4, 5e5])), text=text, vision=vision)


@st.composite
def prompts(draw: st.DrawFn, vision: dict[str, Any]) -> Prompt:
    """Text, images and videos in a drawn order, ending with text."""
    writer = PromptWriter(
        draw(st.integers(0, 1000)),
        side=vision["patch_size"],
        merge=vision["spatial_merge_size"],
        frames=vision["temporal_patch_size"],
    )
    for _ in range(draw(st.integers(1, 4))):
        size = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        match draw(st.sampled_from(["text", "image", "video"])):
            case "text":
                writer.text(draw(st.integers(1, 12)))
            case "image":
                writer.image(*size)
            case _:
                writer.video(draw(st.integers(1, 2)), *size)
    return writer.text(2).prompt


@settings(max_examples=60)
@given(data=st.data(), config=configs(), seed=st.integers(0, 1000))
def test_any_configuration_and_prompt_equals_transformers(
    data: st.DataObject, config: dict[str, Any], seed: int
) -> None:
    prompt = data.draw(prompts(config["vision_config"]))
    assert logits_error(Oracle(config, seed), prompt) <= TOLERANCE
