"""Events come out of a stream however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimt.chat.sse import BadStream, EventReader

LINE_ENDS = st.sampled_from(["\n", "\r", "\r\n"])
TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
NOISE = st.sampled_from([": a comment", ":", "event: message", "id: 7", "retry: 5", "nonsense"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A stream and the texts of its events."""
    stream, events = draw(st.sampled_from(["", "\ufeff"])), []
    for lines in draw(st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=5)):
        for line in lines:
            if draw(st.booleans()):
                stream += draw(NOISE) + draw(LINE_ENDS)
            stream += f"data: {line}" + draw(LINE_ENDS)
        end = draw(LINE_ENDS)  # of the empty line; CR and LF after each other would be one
        stream += "\r" if stream.endswith("\r") and end == "\n" else end
        events.append("\n".join(lines))
    return stream.encode(), events


@given(streams(), st.data())
def test_a_stream_that_is_cut_anywhere_has_the_same_events(
    stream: tuple[bytes, list[str]], data: st.DataObject
) -> None:
    content, events = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    reader, found = EventReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        found += reader.feed(content[start:end])
    assert found == events


def test_every_single_cut_and_every_byte_alone_give_the_same_events() -> None:
    content = ": ping\r\n\r\ndata: a\ndata:b\r\n\r\ndata: ünï\r\rdata\n\ndata: [DONE]\n\n".encode()
    events = ["a\nb", "ünï", "", "[DONE]"]
    for cut in range(len(content) + 1):
        reader = EventReader()
        assert reader.feed(content[:cut]) + reader.feed(content[cut:]) == events
    reader = EventReader()
    assert [text for byte in content for text in reader.feed(bytes([byte]))] == events


def test_an_event_that_no_empty_line_ends_never_happened() -> None:
    assert EventReader().feed(b"data: a\n\ndata: b\n") == ["a"]


def test_an_event_without_end_is_given_up() -> None:
    reader = EventReader()
    megabyte = b"data: " + b"x" * (1 << 20) + b"\n"
    assert reader.feed(15 * megabyte) == []
    with pytest.raises(BadStream):
        reader.feed(megabyte)


def test_comments_that_keep_a_stream_alive_may_go_on_for_ever() -> None:
    reader = EventReader()
    for _ in range(20):
        reader.feed(b": " + b"x" * (1 << 20) + b"\n")
    assert reader.feed(b"data: here\n\n") == ["here"]
