"""A whole executor on the interpreted attention kernels draws what it draws on the definitions."""

import pytest

from glimt.kernels import attention, triton_attention, triton_rope, triton_segments
from tests.support.schedules import Schedule
from tests.support.tiny_model import Album, make_ask, make_executor, tiny_model


@pytest.mark.parametrize(
    ("kind", "seed", "kv_dtype"),
    [("glm4v_moe", 1, "auto"), ("glm4v", 2, "auto"), ("glm4v", 3, "fp8")],
)
def test_chunks_decoding_rows_and_images_give_the_same_tokens(
    kind: str, seed: int, kv_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    album = Album()
    asks = [
        make_ask(album, "tit", 1, max_tokens=3),
        make_ask(album, "tt", 2, max_tokens=3),
    ]

    def draw() -> object:
        executor = make_executor(tiny_model(kind), album, kv_dtype=kv_dtype)
        return Schedule(executor, asks, seed=seed, depth=2).run()

    expected = draw()
    used = []
    monkeypatch.setattr(attention, "_has_twin", lambda x: not used.append(x.shape))
    monkeypatch.setattr(attention, "triton_attention", triton_attention)
    monkeypatch.setattr(attention, "triton_rope", triton_rope)
    monkeypatch.setattr(attention, "triton_segments", triton_segments)
    assert draw() == expected
    assert used
