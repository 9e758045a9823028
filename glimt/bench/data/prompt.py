"""What one conversation asks for, independent of the API that carries it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Image:
    """An image by its address: data:, file: or http(s):. `pixels` is 0 where it is not known."""

    url: str
    pixels: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the user says at once: texts and images in order, or token ids alone.

    `text_tokens` is the number of tokens of the texts alone, by the client's tokenizer; None
    without one. `pause_s` is how long the user thinks before it.
    """

    parts: tuple[str | Image, ...] = ()
    token_ids: tuple[int, ...] = ()
    output_tokens: int
    text_tokens: int | None = None
    pause_s: float = 0.0

    @property
    def images(self) -> tuple[Image, ...]:
        """The images alone."""
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def text(self) -> str:
        """The texts alone."""
        return "\n".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation's turns; `at_s` is when it starts, for traces; `unmarked` is what it was
    before --cache-bust changed it."""

    turns: tuple[Turn, ...]
    at_s: float | None = None
    unmarked: "Prompt | None" = None
