"""The arguments of `glimt chat`; the command line is made from them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from glimt.errors import BadSettings

_Several = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]


@dataclass(frozen=True, kw_only=True)
class ChatWishes:
    """With whom to chat, and how."""

    base_url: str | None = None
    """Chat with this OpenAI-compatible server in place of a local model, e.g.
    http://127.0.0.1:8000/v1."""
    model_name: Annotated[str | None, Parameter(name="--model")] = None
    """The same as MODEL. With --base-url: its name there; default: the first that is listed."""
    api_key: str | None = None
    """Key that the server wants; better through GLIMT_API_KEY."""
    image: _Several = None
    """Images (files or addresses) for the first question."""
    video: _Several = None
    """Videos (files or addresses) for the first question."""
    system: str | None = None
    """System text of the conversation."""
    thinking: Literal["on", "off"] | None = None
    """Let the model think before it answers, or not; default: as the server does by itself."""
    temperature: float | None = None
    """0: the most likely token each time; default: the server's."""
    top_p: float | None = None
    """Draw only among the most likely tokens that have this probability together."""
    max_tokens: int | None = None
    """Longest answer in tokens, thoughts included."""
    seed: int | None = None
    """Makes what is drawn repeatable."""
    preview: bool = True
    """Show images in the terminal, where it has the colours."""
    once: str | None = None
    """Ask this one question and leave."""

    def options(self) -> dict[str, Any]:
        """The fields of a request that the user has set."""
        fields = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_completion_tokens": self.max_tokens,
            "seed": self.seed,
        }
        return {name: value for name, value in fields.items() if value is not None}


def check(model: str | None, wishes: ChatWishes) -> None:
    """Raise BadSettings, with everything that is wrong at once."""
    problems = []
    if model is not None and wishes.model_name not in (None, model):
        problems.append(f"{model} and --model {wishes.model_name}: name one model")
    if wishes.temperature is not None and not 0 <= wishes.temperature <= 100:
        problems.append(f"--temperature {wishes.temperature}: must be 0 to 100")
    if wishes.top_p is not None and not 0 < wishes.top_p <= 1:
        problems.append(f"--top-p {wishes.top_p}: must be above 0, at most 1")
    if wishes.max_tokens is not None and wishes.max_tokens < 1:
        problems.append(f"--max-tokens {wishes.max_tokens}: must be at least 1")
    if wishes.once is not None and not wishes.once.strip():
        problems.append("--once: the question is empty")
    if problems:
        raise BadSettings("these settings cannot be used:", problems)
