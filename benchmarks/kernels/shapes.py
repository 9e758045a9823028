"""The sizes that the kernels see: a model's, on one of so many GPUs."""

from dataclasses import dataclass

from benchmarks.model_sizes import MODELS


@dataclass(frozen=True)
class Shape:
    """One rank's sizes. `num_experts` 0: the model is dense."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    dense_width: int
    expert_width: int
    num_experts: int
    experts_per_token: int
    vocab: int
    vision_width: int
    vision_heads: int
    vision_mlp: int
    layers: int


def shape_of(name: str) -> Shape:
    """The shape of "106b:2": two GPUs share the model. Raises ValueError for unknown names."""
    model, _, size = name.partition(":")
    tp = int(size or 1)
    if model == "tiny":
        return Shape(name, 64, 4, 2, 32, 96, 32, 8, 3, 512, 64, 2, 64, 3)
    if model not in MODELS:
        raise ValueError(f"no model {model!r}: {', '.join(MODELS)}, each with :1, :2 or :4")
    text, vision = MODELS[model]["text_config"], MODELS[model]["vision_config"]
    return Shape(
        name=f"{model}:{tp}",
        hidden=text["hidden_size"],
        heads=text["num_attention_heads"] // tp,
        kv_heads=max(1, text["num_key_value_heads"] // tp),
        head_dim=text["head_dim"],
        dense_width=text["intermediate_size"] // tp,
        expert_width=text.get("moe_intermediate_size", 0) // tp,
        num_experts=text.get("n_routed_experts", 0),
        experts_per_token=text.get("num_experts_per_tok", 0),
        vocab=text["vocab_size"] // tp,
        vision_width=vision["hidden_size"],
        vision_heads=vision["num_heads"],
        vision_mlp=vision["out_hidden_size"],
        layers=text["num_hidden_layers"],
    )


def linear_products(shape: Shape) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the FP8 products by name."""
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    products = {
        "qkv": (heads, shape.hidden),
        "o": (shape.hidden, shape.heads * shape.head_dim),
        "gate_up": (2 * shape.dense_width, shape.hidden),
        "down": (shape.hidden, shape.dense_width),
    }
    if shape.expert_width:
        products["shared gate_up"] = (2 * shape.expert_width, shape.hidden)
        products["shared down"] = (shape.hidden, shape.expert_width)
    return products
