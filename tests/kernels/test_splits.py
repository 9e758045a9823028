"""Into how many parts contexts are split: numbers only."""

import pytest

pytest.importorskip("triton", reason="Triton has packages for Linux only")

from glimt.kernels.triton_decoding import CONFIGS, MAX_SPLITS, num_splits

LEAST = CONFIGS[0].least_tokens


def splits(rows: int, context: int) -> int:
    return num_splits(rows * 8, context, LEAST)


def test_parts_are_worth_it_and_long_contexts_have_enough() -> None:
    for rows in (1, 2, 3, 8, 33, 64, 66, 67, 82, 96, 110, 128, 256):
        for context in (1, 128, 129, 2048, 8192, 32768, 131072, 1 << 20):
            count = splits(rows, context)
            assert 1 <= count <= min(MAX_SPLITS, -(-context // LEAST))
            assert count >= min(context // 4096, MAX_SPLITS)
        assert splits(rows, 0) == 1  # rows that have no context yet


def test_few_rows_are_spread_over_the_device_and_many_are_not_split() -> None:
    assert splits(1, 2048) == 16  # as many as there are parts worth it
    assert splits(8, 2048) == 8
    assert splits(16, 2048) == 4
    assert splits(64, 2048) == splits(128, 2048) == 1
