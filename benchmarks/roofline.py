"""Measures what `glimt plan` takes from a GPU; prints it as a file for `glimt plan --constants`.

    python benchmarks/roofline.py --name h200 > mine.toml

Rates are those of shapes in a GLM-4.5V step and prompt. All-reduces: benchmarks/all_reduce.py.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention

ROUNDS = 20
DEVICE = torch.device("cuda", 0)


def seconds(work: Callable[[], object]) -> float:
    """Median of one call, by the device's clock."""
    for _ in range(3):
        work()
    times = []
    for _ in range(ROUNDS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        work()
        ended.record()
        ended.synchronize()
        times.append(begun.elapsed_time(ended) / 1e3)
    return statistics.median(times)


def bandwidths() -> Iterator[tuple[str, float, str]]:
    """Of a copy, bytes read and written, and of reading alone."""
    count = 2 * 2**30
    source = torch.zeros(count, dtype=torch.int8, device=DEVICE)
    target = torch.empty_like(source)
    yield "bandwidth", 2 * count / seconds(lambda: target.copy_(source)), "device copy of 2 GiB"
    words = source.view(torch.float32)
    yield "reading", count / seconds(lambda: words.sum()), "sum of 2 GiB of float32"


def fp8_rate(rows: int, width: int, depth: int) -> float:
    """FLOP/s of a row-wise scaled product."""
    left = torch.ones(rows, depth, device=DEVICE).to(torch.float8_e4m3fn)
    right = torch.ones(width, depth, device=DEVICE).to(torch.float8_e4m3fn).t()
    scale_rows = torch.ones(rows, 1, device=DEVICE)
    scale_columns = torch.ones(1, width, device=DEVICE)
    time_s = seconds(
        lambda: torch._scaled_mm(
            left,
            right,
            scale_rows,
            scale_columns,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    )
    return 2 * rows * width * depth / time_s


def bf16_rate(rows: int, width: int, depth: int) -> float:
    """FLOP/s of a plain product."""
    left = torch.randn(rows, depth, device=DEVICE, dtype=torch.bfloat16)
    right = torch.randn(depth, width, device=DEVICE, dtype=torch.bfloat16)
    return 2 * rows * width * depth / seconds(lambda: left @ right)


def experts_rate(rows_each: int) -> float:
    """FLOP/s of all 128 experts' first product, `rows_each` rows for each."""
    experts, width, depth = 128, 2816, 4096
    rows = experts * rows_each
    left = torch.ones(rows, depth, device=DEVICE).to(torch.float8_e4m3fn)
    right = torch.empty(experts, width, depth, device=DEVICE, dtype=torch.float8_e4m3fn)
    ends = torch.arange(rows_each, rows + 1, rows_each, device=DEVICE, dtype=torch.int32)
    scale_rows = torch.ones(rows, device=DEVICE)
    scale_columns = torch.ones(experts, width, device=DEVICE)
    time_s = seconds(
        lambda: torch._scaled_grouped_mm(
            left,
            right.transpose(-2, -1),
            scale_rows,
            scale_columns,
            offs=ends,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    )
    return 2 * rows * width * depth / time_s


def attention_rate(heads: int, length: int, *, causal: bool) -> float:
    """FLOP/s of attention over one sequence, heads of 128."""
    query = torch.randn(1, heads, length, 128, device=DEVICE, dtype=torch.bfloat16)
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]):
        time_s = seconds(lambda: attention(query, query, query, is_causal=causal))
    pairs = length * length / 2 if causal else length * length
    return 4 * heads * 128 * pairs / time_s


def launch_s() -> float:
    """Seconds from one small kernel to the next in a CUDA graph."""
    small = torch.zeros(4096, device=DEVICE)
    small.add_(1)
    graph, count = torch.cuda.CUDAGraph(), 1000
    with torch.cuda.graph(graph):
        for _ in range(count):
            small.add_(1)
    return seconds(graph.replay) / count


def link_rate() -> float:
    """Bytes/s from one GPU to another, one direction."""
    source = torch.zeros(2**30, dtype=torch.int8, device=DEVICE)
    target = torch.empty(2**30, dtype=torch.int8, device="cuda:1")
    return 2**30 / seconds(lambda: target.copy_(source))


def lines(name: str) -> Iterator[str]:
    """The file, line by line."""

    def line(key: str, value: float, note: str) -> str:
        return f'{key} = {{ value = {value:.4g}, source = "measured", note = "{note}" }}'

    yield f"# {torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}, roofline.py"
    yield f"[gpu.{name}]"
    _, total = torch.cuda.mem_get_info(DEVICE)
    yield line("memory_bytes", total, "total memory as CUDA tells it")
    for key, value, note in bandwidths():
        yield ("# " if key == "reading" else "") + line(key, value, note)
    for rows in (64, 512, 1459, 4096, 8192):
        rate = fp8_rate(rows, 14336, 4096)
        yield ("" if rows == 4096 else "# ") + line(
            "fp8", rate, f"torch._scaled_mm, {rows} rows, QKV"
        )
    for rows in (8, 91, 512):
        yield "# " + line("fp8", experts_rate(rows), f"torch._scaled_grouped_mm, {rows} rows each")
    yield line("bf16", bf16_rate(5476, 8192, 1536), "product of the tower's MLP, 5476 patches")
    yield "# " + line("bf16", bf16_rate(8192, 8192, 8192), "8192 cubed")
    yield line("attention", attention_rate(96, 8192, causal=True), "causal, 96 heads, 8192 tokens")
    yield "# " + line("attention", attention_rate(12, 5476, causal=False), "tower, 5476 patches")
    if torch.cuda.device_count() > 1:
        yield line("link", link_rate(), "copy of 1 GiB to the next GPU")
    yield "\n[engine]"
    yield line("launch_s", launch_s(), "from kernel to kernel in a CUDA graph")


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="mine", help="of the GPU in `glimt plan --gpu`")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    for text in lines(options.name):
        print(text, flush=True)


if __name__ == "__main__":
    main()
