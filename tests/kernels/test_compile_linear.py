"""What the ways to multiply few rows compile to for Hopper; see `test_compile_sm90`."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton has packages for Linux only")

from glimt.kernels import tiles, triton_linear  # noqa: E402
from glimt.kernels.attention import MAX_MEASURED_ROWS  # noqa: E402
from glimt.kernels.reference import MeasuredRows, QuantizedRows  # noqa: E402
from glimt.kernels.tiles import LinearTile  # noqa: E402
from tests.support.hopper import Binary, binaries  # noqa: E402

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="kernels are interpreted")

FP8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def product(
    num_outputs: int, num_inputs: int, tile: LinearTile, *, measured: bool, num_rows: int = 1
) -> Binary:
    """QKV's has a bias, O's is only measured."""
    x, scale = meta(num_rows, num_inputs), meta(num_rows, 1, dtype=torch.float32)
    q = meta(num_rows, num_inputs, dtype=FP8)
    rows: QuantizedRows | MeasuredRows = QuantizedRows(x, q, scale)
    if measured:
        rows = MeasuredRows(x, meta(num_rows, 96, dtype=torch.float32))
    weight, weight_scale = meta(num_outputs, num_inputs, dtype=FP8), meta(num_outputs)
    bias = None if measured else meta(num_outputs)
    given = (rows, weight, weight_scale.float(), bias, tile)
    return binaries(lambda: triton_linear.fp8_linear(*given, defers=True))[0]


def loops(binary: Binary) -> list[str]:
    """The code between each place that is jumped back to and the jump."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", binary.sass)
    places = [int(place, 16) for place, _ in lines]
    found = []
    for number, (place, code) in enumerate(lines):
        jump = re.search(r"BRA.* 0x([0-9a-f]+)", code)
        if jump and int(jump[1], 16) < int(place, 16):
            start = places.index(int(jump[1], 16))
            found.append("\n".join(code for _, code in lines[start : number + 1]))
    return found


@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "tile", "measured"),
    [
        (14336, 4096, LinearTile(4, 512, 1, 1, 2, "fma"), False),
        (14336, 4096, LinearTile(4, 1024, 1, 2, 3, "fma"), False),
        (4096, 12288, LinearTile(4, 512, 4, 1, 2, "fma"), True),
    ],
)
def test_a_single_row_is_multiplied_without_waiting_for_other_warps(
    num_outputs: int, num_inputs: int, tile: LinearTile, measured: bool
) -> None:
    binary = product(num_outputs, num_inputs, tile, measured=measured)
    assert binary.stack_bytes == 0
    assert binary.registers <= 96
    assert binary.count("QGMMA") == binary.count("HMMA") == 0
    (loop,) = (code for code in loops(binary) if "FFMA" in code)
    assert loop.count("LDG.E.EF.128") == 4  # of the next step
    assert "BAR.SYNC" not in loop
    assert "STS" not in loop
    # Two numbers an instruction from e4m3, one to float32, one multiplied and added.
    assert loop.count("F2FP.F16.E4M3.UNPACK_B") <= 40
    assert loop.count("FFMA") <= 66


@pytest.mark.parametrize("measured", [False, True])
def test_weights_by_tma_are_multiplied_by_fp8_tensor_cores(measured: bool) -> None:
    size = (4096, 12288) if measured else (14336, 4096)
    binary = product(*size, LinearTile(64, 256, 4, 4, 3, "tma"), measured=measured)
    assert binary.stack_bytes == 0
    assert binary.registers <= 96
    assert binary.count("QGMMA") > 0
    assert binary.count("HMMA") == 0
    assert binary.count("UTMALDG") == 3  # two ahead, and one in the loop
    assert binary.shared_bytes <= 75 * 1024  # three programs on a multiprocessor


def test_weights_by_tma_are_asked_for_before_a_rows_scale_is_known() -> None:
    binary = product(4096, 12288, LinearTile(64, 256, 4, 4, 3, "tma"), measured=True)
    largest_found = binary.sass.index("SHFL.BFLY")
    assert binary.sass.index("UTMALDG") < largest_found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("num_rows", [1, 16, 32, 64])
def test_no_shipped_tile_spills_registers(num_rows: int) -> None:
    table = json.loads(Path(tiles.__file__).with_name("tiles.json").read_text())
    for part in table.values():
        for size, by_rows in part["fp8_linear"].items():
            num_outputs, num_inputs = map(int, size.split("x"))
            if (found := by_rows.get(str(num_rows))) is not None:
                is_o = num_inputs in (12288, 6144, 3072) and num_rows <= MAX_MEASURED_ROWS
                size_and_tile = (num_outputs, num_inputs, LinearTile(**found))
                binary = product(*size_and_tile, measured=is_o, num_rows=num_rows)
                assert binary.stack_bytes == 0, (size, found)
