"""The tokenizer of the model that comes with Glimt."""

import pytest

from glimt.builtin.model import model_folder
from glimt.frontend.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(model_folder() / "tokenizer.json")


@pytest.mark.parametrize("blanks", [" ", "\u3000"])
def test_a_text_of_blanks_costs_no_more_than_another(tokenizer: Tokenizer, blanks: str) -> None:
    """Looking ahead from each blank to the end of all would take hours here."""
    text = blanks * (300_000 // len(blanks))
    assert len(tokenizer.encode_text(text)) == len(text.encode())


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a the", ["a", " the"]),
        ("a\n the", ["a", "\n", " the"]),
        ("a  the", ["a", " ", " ", "t", "h", "e"]),
        ("\t the", ["\t", " ", "t", "h", "e"]),
        (" 12", [" ", "1", "2"]),
        ("the ", ["t", "h", "e", " "]),
    ],
)
def test_a_word_takes_one_space_that_stands_alone(
    tokenizer: Tokenizer, text: str, pieces: list[str]
) -> None:
    assert [tokenizer.token_text(each) for each in tokenizer.encode_text(text)] == pieces
