"""What tests of the benchmark client share."""

import pytest

from glimt.bench.data.tokens import Tokens
from glimt.tiny.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer("4.5").save(str(path))
    return Tokens(path)
