"""What the tests of the trainer share: one thread, a toy's tokenizer, a small shape."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glimt.tiny.tokenizer import make_tokenizer
from training.shape import Shape, make_shape


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps of milliseconds are faster alone than shared, and come out the same each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's tokenizer.json."""
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    make_tokenizer("4.5").save(str(path))
    return path


@pytest.fixture(scope="session")
def small_shape() -> Shape:
    """The preset `small` with the toy's vocabulary."""
    return make_shape("small", make_tokenizer("4.5"))
