"""Into how many parts contexts are split: numbers only."""

import pytest

pytest.importorskip("triton", reason="Triton has packages for Linux only")

from glimt.kernels import triton_parts
from glimt.kernels.triton_decoding import CONFIGS

LEAST = CONFIGS[0].least_tokens
ROWS = (1, 2, 3, 8, 33, 64, 66, 67, 82, 96, 110, 128, 256)


def splits(rows: int, context: int, value_bytes: int = 2) -> int:
    return triton_parts.num_splits(rows * 8, context, LEAST, value_bytes)


@pytest.mark.parametrize("waves", [0, 35, 50, 100])
@pytest.mark.parametrize("value_bytes", [1, 2, 4])
def test_parts_are_worth_it_and_long_contexts_have_enough(
    waves: int, value_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_parts, "WAVES", waves)
    for rows in ROWS:
        for context in (1, 128, 129, 2048, 8192, 32768, 131072, 1 << 20):
            count = splits(rows, context, value_bytes)
            assert 1 <= count <= min(triton_parts.MAX_SPLITS, -(-context // LEAST))
            assert count >= min(context // 4096, triton_parts.MAX_SPLITS)
        assert splits(rows, 0, value_bytes) == 1  # rows that have no context yet


def test_few_rows_are_spread_over_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert splits(1, 2048) == 16  # as many as there are parts worth it
    monkeypatch.setattr(triton_parts, "PROGRAMS", 64)
    assert splits(1, 2048) == 8
    monkeypatch.setattr(triton_parts, "WAVES", 50)
    assert splits(1, 2048) >= 8
    assert splits(8, 8192) > 1


@pytest.mark.parametrize(("value_bytes", "resident"), [(2, 5), (1, 3)])
def test_whole_waves_leave_less_of_the_device_idle(
    value_bytes: int, resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that need a second round, which is not full, are split so that less of it waits."""
    monkeypatch.setattr(triton_parts, "WAVES", 100)

    def busy(programs: int) -> float:
        waves = programs / (132 * resident)
        return waves / -(-programs // (132 * resident))

    rows = [rows for rows in ROWS if rows >= 64 and busy(rows * 8) < 0.8]
    assert rows
    for count in rows:
        assert busy(count * 8 * splits(count, 2048, value_bytes)) > busy(count * 8)
    full = 132 * resident // 8  # rows that fill one wave are not split
    assert splits(full, 2048, value_bytes) == 1


def test_programs_that_combine_take_more_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_parts, "WAVES", 100)
    apart = [splits(rows, 2048) for rows in ROWS]
    monkeypatch.setattr(triton_parts, "COMBINE_AT_ONCE", 1)
    assert [splits(rows, 2048) for rows in ROWS] != apart
    assert splits(82, 2048) == 1  # without parts they are as many as ever: 656 of 660
