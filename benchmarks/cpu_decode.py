"""Tokens per second of a tiny random model on the CPU, through the executor: prefill and decode."""

import argparse
import math
import time

import numpy as np
import torch

from glimt.engine.plan import NewRow, RowWork, StepPlan
from glimt.models.config import (
    MediaTokens,
    ModelConfig,
    MoeConfig,
    RopeConfig,
    TextConfig,
    VisionConfig,
)
from glimt.models.glm4v import Glm4v
from glimt.parallel.mesh import Mesh
from glimt.runner.build import ExecutorSizes, build_executor, kv_layout
from glimt.runner.executor import ModelExecutor
from glimt.wire import SamplingParams

PAGE_SIZE = 16
CPU = torch.device("cpu")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    model = random_model(arguments, dtype)
    num_tokens = arguments.prompt + arguments.tokens
    pages_per_row = -(-(num_tokens + 1) // PAGE_SIZE)
    sizes = ExecutorSizes(
        num_pages=pages_per_row * arguments.batch,
        page_size=PAGE_SIZE,
        max_num_seqs=arguments.batch,
        max_model_len=num_tokens + 1,
        max_patches=4096,
    )
    layout = kv_layout(model, PAGE_SIZE, dtype, arguments.kv_dtype)
    executor = build_executor(model, layout, sizes, [], CPU)
    sampling = SamplingParams(max_tokens=arguments.tokens, temperature=arguments.temperature)
    prefill_s = prefill(executor, arguments, sampling, pages_per_row)
    decode_s = decode(executor, arguments)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"cpu decode: {arguments.architecture}, {parameters:.1f} M parameters, {arguments.dtype}, "
        f"KV {arguments.kv_dtype}, {arguments.threads} threads, batch {arguments.batch}: "
        f"prefill {arguments.batch * arguments.prompt / prefill_s:,.0f} tokens/s, "
        f"decode {arguments.batch * arguments.tokens / decode_s:,.0f} tokens/s "
        f"({1e3 * decode_s / arguments.tokens:.2f} ms per step)"
    )


def parse_arguments() -> argparse.Namespace:
    parser = model_parser(__doc__, batch=4)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--kv-dtype", choices=("auto", "fp8"), default="auto")
    return parser.parse_args()


def model_parser(description: str | None, batch: int) -> argparse.ArgumentParser:
    """The arguments of `random_model`, and of how much it is to do."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--architecture", choices=("glm4v", "glm4v_moe"), default="glm4v_moe")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=4096, help="GLM's is 151552")
    parser.add_argument("--batch", type=int, default=batch, help="requests at once")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def prefill(
    executor: ModelExecutor,
    arguments: argparse.Namespace,
    sampling: SamplingParams,
    pages_per_row: int,
) -> float:
    """Seconds for all prompts, one step each."""
    generator = np.random.default_rng(0)
    started = time.perf_counter()
    for row in range(arguments.batch):
        tokens = generator.integers(0, arguments.vocab, arguments.prompt).astype(np.int32)
        pages = tuple(range(row * pages_per_row, (row + 1) * pages_per_row))
        new = NewRow(row, tokens, arguments.prompt, None, 0, (), sampling, pages)
        work = RowWork(row, 0, arguments.prompt, samples=True)
        executor.launch(StepPlan(row, new_rows=(new,), work=(work,))).result()
    return time.perf_counter() - started


def decode(executor: ModelExecutor, arguments: argparse.Namespace) -> float:
    """Seconds for all further tokens, all requests in every step."""
    started = time.perf_counter()
    for index in range(arguments.prompt, arguments.prompt + arguments.tokens):
        work = tuple(RowWork(row, index, 1, samples=True) for row in range(arguments.batch))
        result = executor.launch(StepPlan(index, work=work)).result()
        if len(result.token_ids) != arguments.batch:
            raise RuntimeError(f"rows failed: {result.failed}")
    return time.perf_counter() - started


def random_model(arguments: argparse.Namespace, dtype: torch.dtype) -> Glm4v:
    """A model of the family with random weights."""
    hidden, moe = arguments.hidden, None
    if arguments.architecture == "glm4v_moe":
        moe = MoeConfig(
            first_layer=1,
            num_experts=16,
            num_experts_per_token=4,
            intermediate_size=hidden // 2,
            shared_intermediate_size=hidden // 2,
            num_groups=1,
            num_groups_per_token=1,
            norm_topk_prob=True,
            routed_scaling_factor=1.0,
        )
    text = TextConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_layers=arguments.layers,
        num_heads=hidden // 64,
        num_kv_heads=max(1, hidden // 128),
        head_dim=64,
        attention_bias=True,
        rms_norm_eps=1e-5,
        vocab_size=arguments.vocab,
        max_position_embeddings=65_536,
        rope=RopeConfig(10_000.0, 32, (4, 6, 6), interleaved=moe is None),
        sandwich=moe is None,
        moe=moe,
    )
    vision = VisionConfig(
        depth=2,
        hidden_size=128,
        num_heads=2,
        in_channels=3,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        position_grid=24,
        block_intermediate_size=hidden,
        merger_intermediate_size=hidden,
        out_hidden_size=hidden,
        rms_norm_eps=1e-5,
    )
    config = ModelConfig(
        architecture=arguments.architecture,
        text=text,
        vision=vision,
        tokens=MediaTokens(0, 1, 2, 3, 4, 5),
        eos_token_ids=(6,),
        pad_token_id=None,
        dtype=arguments.dtype,
        quantized=False,
    )
    with torch.device("meta"):
        model = Glm4v(config, Mesh.single())
    model = model.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / math.sqrt(noise.shape[-1]) if noise.ndim > 1 else 1 + 0.1 * noise)
    return model


if __name__ == "__main__":
    main()
