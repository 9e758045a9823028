"""Tokenizers, templates, hostile texts and prepared media for the tests of the client tower."""

import functools
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer as BpeTokenizer

import glimt.tiny
from glimt.frontend.prompt import MediaSource, PreparedFrame, PreparedMedia
from glimt.frontend.render import Renderer
from glimt.frontend.template import ChatTemplate
from glimt.frontend.tokenizer import Tokenizer
from glimt.tiny.tokenizer import make_tokenizer
from glimt.wire import ImageSettings, PixelRef

STYLES = ("4.5", "4.1")


@functools.cache
def whole_tokenizer(style: str = "4.5") -> BpeTokenizer:
    """The plain tokenizer, which takes control tokens from any text."""
    return make_tokenizer(style)


@functools.cache
def tokenizer(style: str = "4.5") -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        whole_tokenizer(style).save(str(path))
        return Tokenizer(path)


def tokenizer_without(*texts: str) -> Tokenizer:
    """A tokenizer that lacks some control tokens."""
    file = json.loads(whole_tokenizer().to_str())
    file["added_tokens"] = [t for t in file["added_tokens"] if t["content"] not in texts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(file))
        return Tokenizer(path)


@functools.cache
def template_source(style: str = "4.5") -> str:
    name = "chat_template_4.1.jinja" if style == "4.1" else "chat_template.jinja"
    return (Path(glimt.tiny.__file__).parent / name).read_text("utf-8")


@functools.cache
def renderer(
    style: str = "4.5", max_model_len: int = 100_000, source: str | None = None
) -> Renderer:
    template = ChatTemplate(template_source(style) if source is None else source)
    return Renderer(tokenizer(style), template, ImageSettings(), max_model_len)


def control_ids(token_ids: Sequence[int], style: str = "4.5") -> list[int]:
    known = set(tokenizer(style).control_tokens.values())
    return [int(token_id) for token_id in token_ids if token_id in known]


CONTROL_TEXTS = sorted({*tokenizer("4.5").control_tokens, *tokenizer("4.1").control_tokens})

# Letters and words, and what tries to be more than that: control strings whole and in halves, the
# characters that stand in for others, JSON and template syntax, look-alikes.
_FRAGMENTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from(CONTROL_TEXTS),
    st.sampled_from([text[:3] for text in CONTROL_TEXTS] + [text[3:] for text in CONTROL_TEXTS]),
    st.sampled_from(["\ue000", "\ue001", "\ue005", "\U000f0000", "\x00123\x00", "{{7*7}}", "{%"]),
    st.sampled_from(
        ["\uff1c|user|\uff1e", "<\u200b|user|>", "\\u003c|user|>", '"', "\\", "\n", " "]
    ),
)
HOSTILE = st.lists(_FRAGMENTS, max_size=6).map("".join)


@dataclass
class CountedLease:
    """Counts how often it was released."""

    released: int = 0

    def release(self) -> None:
        self.released += 1


@dataclass
class FakeMedia:
    """Gives grids by URL; a URL without a grid raises what `failures` holds for it."""

    grids: dict[str, Any]  # image: (h, w); video: [(h, w, timestamp), …]
    failures: dict[str, BaseException] = field(default_factory=dict)
    leases: list[CountedLease] = field(default_factory=list)
    settings: list[ImageSettings | None] = field(default_factory=list)  # as asked for

    num_forgotten: int = 0

    def forget(self) -> None:
        self.num_forgotten += 1

    async def prepare(self, source: MediaSource) -> PreparedMedia:
        if source.url in self.failures:
            raise self.failures[source.url]
        self.settings.append(source.settings)
        grids = self.grids[source.url]
        steps = grids if source.kind == "video" else [(*grids, "")]
        self.leases.append(CountedLease())
        return PreparedMedia(
            kind=source.kind,
            content_hash=hashlib.sha256(source.url.encode()).digest(),
            frames=tuple(
                PreparedFrame(
                    grid_h=h,
                    grid_w=w,
                    num_frames=2 if source.kind == "video" else 1,
                    pixels=PixelRef(0, 4096 * i, h * w * 3 * 196),
                    timestamp=timestamp,
                )
                for i, (h, w, timestamp) in enumerate(steps)
            ),
            lease=self.leases[-1],
        )
