"""The numbers of a model that estimates are made of, against its parameters counted by hand."""

import pytest

from glimt.processes.work_sizes import work_sizes
from glimt.runner.build import kv_layout
from tests.support.tiny_model import tiny_model


@pytest.mark.parametrize("kind", ["glm4v_moe", "glm4v"])
def test_every_weight_is_counted_once(kind: str) -> None:
    model = tiny_model(kind)
    layout = kv_layout(model, 4, model.embedding.weight.dtype, "auto")
    sizes = work_sizes(model, layout)
    tables = {"embedding.weight", "vision.position_embedding"}
    parameters = [p for name, p in model.named_parameters() if name not in tables]
    num_bytes = sizes.weight_bytes + sizes.head_bytes + sizes.vision_bytes
    num_bytes += sizes.expert_bytes * sizes.num_experts
    assert num_bytes == 4 * sum(parameter.numel() for parameter in parameters)
    assert sizes.head_weights == model.lm_head.weight.numel()
    text = model.config.text
    assert sizes.pair_flops == 4 * text.num_heads * text.head_dim * text.num_layers
    assert sizes.num_experts == (text.moe.num_experts if text.moe is not None else 0)
    vector = 2 * text.num_kv_heads * text.head_dim * 4
    assert sizes.kv_token_bytes == vector * text.num_layers
