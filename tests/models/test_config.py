import contextlib
import copy
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.errors import BadCheckpoint
from glimt.models.config_json import merge_overrides, read_config
from tests.support.configs import SPELLINGS, tiny_config

KINDS = ("glm4v_moe", "glm4v")


def glm_4_5v_fp8() -> dict[str, Any]:
    """What the hub's file says, with the ignore list cut short."""
    part = {"num_bits": 8, "type": "float", "symmetric": True}
    return {
        "architectures": ["Glm4vMoeForConditionalGeneration"],
        "model_type": "glm4v_moe",
        "tie_word_embeddings": False,
        "image_start_token_id": 151339,
        "image_end_token_id": 151340,
        "video_start_token_id": 151341,
        "video_end_token_id": 151342,
        "image_token_id": 151363,
        "video_token_id": 151364,
        "transformers_version": "4.57.1",
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {**part, "strategy": "channel", "dynamic": False},
                    "input_activations": {**part, "strategy": "token", "dynamic": True},
                    "output_activations": None,
                }
            },
        },
        "text_config": {
            "model_type": "glm4v_moe_text",
            "attention_bias": True,
            "dtype": "bfloat16",
            "eos_token_id": [151329, 151336, 151338],
            "first_k_dense_replace": 1,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "max_position_embeddings": 65536,
            "moe_intermediate_size": 1408,
            "n_group": 1,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": 96,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 46,
            "num_key_value_heads": 8,
            "pad_token_id": 151329,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]},
            "rope_theta": 10000.0,
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
            "use_qk_norm": False,
            "vocab_size": 151552,
        },
        "vision_config": {
            "model_type": "glm4v_moe",
            "attention_bias": False,
            "depth": 24,
            "hidden_act": "silu",
            "hidden_size": 1536,
            "image_size": 336,
            "in_channels": 3,
            "intermediate_size": 10944,
            "num_heads": 12,
            "out_hidden_size": 4096,
            "patch_size": 14,
            "rms_norm_eps": 1e-5,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def glm_4_1v_flat() -> dict[str, Any]:
    """The first revision of GLM-4.1V-9B-Thinking: no text_config, no head_dim, no in_channels."""
    return {
        "architectures": ["Glm4vForConditionalGeneration"],
        "model_type": "glm4v",
        "attention_bias": True,
        "pad_token_id": 151329,
        "eos_token_id": [151329, 151336, 151338, 151348],
        "image_start_token_id": 151339,
        "image_end_token_id": 151340,
        "video_start_token_id": 151341,
        "video_end_token_id": 151342,
        "image_token_id": 151343,
        "video_token_id": 151344,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "max_position_embeddings": 65536,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 151552,
        "partial_rotary_factor": 0.5,
        "vision_config": {
            "hidden_size": 1536,
            "depth": 24,
            "num_heads": 12,
            "attention_bias": False,
            "intermediate_size": 13696,
            "hidden_act": "silu",
            "image_size": 336,
            "patch_size": 14,
            "out_hidden_size": 4096,
            "rms_norm_eps": 1e-05,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "default", "mrope_section": [8, 12, 12]},
    }


def test_the_file_of_glm_4_5v_fp8_is_read_as_published() -> None:
    model = read_config(glm_4_5v_fp8())
    text = model.text
    assert (model.architecture, model.dtype, model.quantized) == ("glm4v_moe", "bfloat16", True)
    assert (text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim) == (12288, 1024)
    assert text.moe is not None
    assert (text.moe.num_experts, text.moe.num_experts_per_token) == (128, 8)
    assert text.moe.shared_intermediate_size == 1408
    assert [text.is_moe_layer(layer) for layer in (0, 1, 45)] == [False, True, True]
    assert not text.sandwich
    assert (text.rope.theta, text.rope.rotary_dim, text.rope.sections) == (1e4, 64, (8, 12, 12))
    assert not text.rope.interleaved
    assert (model.vision.position_grid, model.vision.head_dim, model.vision.patch_dim) == (
        24,
        128,
        1176,
    )
    assert (model.vision.block_intermediate_size, model.vision.merger_intermediate_size) == (
        4096,
        10944,
    )
    assert (model.tokens.image, model.eos_token_ids) == (151363, (151329, 151336, 151338))


def test_the_flat_file_of_glm_4_1v_is_read_as_published() -> None:
    model = read_config(glm_4_1v_flat())
    assert (model.architecture, model.dtype, model.quantized) == ("glm4v", "bfloat16", False)
    assert (model.text.head_dim, model.text.rope.rotary_dim) == (128, 64)
    assert model.text.rope.interleaved
    assert model.text.sandwich
    assert model.text.moe is None
    assert (model.vision.in_channels, model.tokens.video) == (3, 151344)
    assert len(model.eos_token_ids) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_all_spellings_of_the_rope_settings_say_the_same(kind: str) -> None:
    read = [read_config(tiny_config(kind, spelling=name, theta=5e5)) for name in SPELLINGS]
    assert read[0] == read[1] == read[2]
    assert read[0].text.rope.theta == 5e5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_missing_partial_rotary_factor_is_one_half(kind: str, spelling: str) -> None:
    silent = tiny_config(kind, spelling=spelling, partial_rotary_factor=None)
    assert read_config(silent) == read_config(tiny_config(kind, spelling=spelling))


def test_pixel_statistics_come_from_the_preprocessor_file_where_it_has_them() -> None:
    ours = read_config(tiny_config("glm4v"), {"image_mean": [0.5, 0.5, 0.5]})
    assert ours.vision.image_mean == (0.5, 0.5, 0.5)
    assert ours.vision.image_std == read_config(tiny_config("glm4v")).vision.image_std


def test_every_problem_is_listed_in_one_error() -> None:
    config = tiny_config("glm4v_moe")
    del config["text_config"]["hidden_size"]
    config["text_config"]["num_hidden_layers"] = "three"
    config["text_config"]["use_qk_norm"] = True
    config["vision_config"]["depth"] = True
    config["image_token_id"] = 10**6
    with pytest.raises(BadCheckpoint) as caught:
        read_config(config)
    text = "\n".join(caught.value.problems)
    for name in ("text_config.hidden_size is missing", "num_hidden_layers", "use_qk_norm", "depth"):
        assert name in text
    assert "[1000000] lie beyond vocab_size" in text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": None, "model_type": "llama"}, "llama"),
        ({"architectures": [], "model_type": None}, "model_type"),
        ({"architectures": "Glm4v"}, "must be a list"),
        ({"model_type": "glm4v"}, "contradicts"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"text_config": 5}, "text_config must be an object"),
        ({"text_config": {"rope_parameters": {"rope_type": "yarn"}}}, "yarn"),
        ({"text_config": {"rope_parameters": {"mrope_section": [1, 1, 1]}}}, "add up to 8"),
        ({"text_config": {"rope_parameters": {"rope_theta": None}}}, "rope_theta is missing"),
        ({"text_config": {"partial_rotary_factor": 0.3, "rope_parameters": None}}, "rope_scaling"),
        ({"text_config": {"num_experts_per_tok": 9}}, "num_experts_per_tok"),
        ({"text_config": {"n_group": 3}}, "n_group"),
        ({"text_config": {"topk_group": 2}}, "topk_group"),
        ({"text_config": {"rms_norm_eps": float("inf")}}, "rms_norm_eps"),
        ({"text_config": {"num_attention_heads": 3}}, "num_key_value_heads"),
        ({"text_config": {"dtype": "int8"}}, "dtype"),
        ({"text_config": {"eos_token_id": ["a"]}}, "eos_token_id"),
        ({"text_config": {"attention_bias": 1}}, "attention_bias must be true or false"),
        ({"vision_config": {"out_hidden_size": 32}}, "out_hidden_size"),
        ({"vision_config": {"num_heads": 3}}, "num_heads"),
        ({"vision_config": {"image_size": 300}}, "image_size"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_a_model_that_glimt_cannot_compute_is_refused_by_name(
    change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadCheckpoint, match="does not describe") as caught:
        read_config(merge_overrides(tiny_config("glm4v_moe"), change))
    assert any(complaint in problem for problem in caught.value.problems)


def test_block_quantised_weights_are_refused() -> None:
    config = glm_4_5v_fp8()
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"] = "block"
    with pytest.raises(BadCheckpoint, match="only 'channel' is supported"):
        read_config(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below),
    max_leaves=4,
)


@given(data=st.data(), kind=st.sampled_from(KINDS), spelling=st.sampled_from(SPELLINGS))
def test_a_damaged_file_is_read_or_refused_but_never_crashes(
    data: st.DataObject, kind: str, spelling: str
) -> None:
    config = copy.deepcopy(tiny_config(kind, spelling=spelling))
    section = data.draw(st.sampled_from(["", "vision_config", "text_config", "rope_parameters"]))
    target = config
    for name in ("text_config", "rope_parameters") if section == "rope_parameters" else (section,):
        target = target.get(name, target)
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    with contextlib.suppress(BadCheckpoint):
        assert read_config(config).vision.depth > 0


def test_overrides_are_laid_over_key_by_key_and_leave_the_original_alone() -> None:
    config = {"a": 1, "text_config": {"x": 1, "y": {"z": 2}}}
    before = json.dumps(config)
    merged = merge_overrides(config, {"text_config": {"y": {"z": 3, "w": 4}}, "b": [1]})
    assert merged == {"a": 1, "b": [1], "text_config": {"x": 1, "y": {"z": 3, "w": 4}}}
    assert json.dumps(config) == before


def test_reading_a_config_does_not_import_torch() -> None:
    code = "import sys, glimt.models.config_json; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
