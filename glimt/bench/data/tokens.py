"""Counts and makes tokens with a model's tokenizer.json, where there is one."""

from collections.abc import Sequence
from pathlib import Path

from glimt.bench.data.hub_files import cached_file, download
from glimt.bench.optional import optional
from glimt.errors import BadSettings


class Tokens:
    """A tokenizer as the datasets need it."""

    def __init__(self, path: Path) -> None:
        """Read tokenizer.json. Raises BadSettings."""
        library = optional("tokenizers", "counting tokens", "pip install tokenizers")
        try:
            self._tokenizer = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BadSettings(f"{path} cannot be read as a tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.path = path
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)
        self.special_ids = frozenset(
            token_id
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self.num_added = len(self._tokenizer.encode("", add_special_tokens=True).ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def count(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self.encode(text))

    def decode(self, token_ids: list[int]) -> str:
        """The text of tokens, control tokens included."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))


def find_tokenizer(
    names: Sequence[str | None], *, is_wanted: bool
) -> tuple[Tokens | None, list[str]]:
    """The first tokenizer among `names` (folders, files, hub repositories), and notes for the user.

    Looks at the disk and the hub's cache before it asks the hub. With `is_wanted` (the user named
    it) a failure raises BadSettings; otherwise it becomes a note.
    """
    reasons: list[str] = []
    for name in dict.fromkeys(name for name in names if name):
        try:
            return Tokens(_locate(name)), []
        except BadSettings as error:
            reasons.append(error.message)
    if is_wanted:
        raise BadSettings(reasons[0])
    why = f" ({reasons[-1]})" if reasons else ""
    return None, [f"no tokenizer{why}: lengths of texts are estimates; give --tokenizer"]


def _locate(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return path / "tokenizer.json"
        raise BadSettings(f"{path} has no tokenizer.json")
    if name.count("/") != 1 or name.startswith(("/", ".")):
        raise BadSettings(f"there is no tokenizer {name!r}: neither a file nor a hub repository")
    return cached_file(name, "tokenizer.json") or download(name, "tokenizer.json")


def estimate(text: str, tokens: Tokens | None) -> int:
    """Tokens of a text; without a tokenizer a quarter of its bytes."""
    return tokens.count(text) if tokens else len(text.encode()) // 4
