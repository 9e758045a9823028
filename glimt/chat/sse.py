"""Server-sent events out of a stream of bytes that is cut anywhere (the WHATWG's parsing rules)."""

import codecs

_MAX_EVENT_BYTES = 16 << 20


class BadStream(ValueError):
    """What comes is no stream of events."""


class EventReader:
    """Takes bytes as they come and gives the data of each event once it is complete.

    Lines end with LF, CR or CRLF; several data lines make one text with LF between; comments and
    other fields are left out. An event that no empty line has ended never happened.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._num_data_bytes = 0
        self._after_cr = False
        self._is_first_line = True

    def feed(self, piece: bytes) -> list[str]:
        """The data of all events that end in this piece.

        Raises BadStream for an event of more than 16 MiB.
        """
        events: list[str] = []
        for line in piece.splitlines(keepends=True):  # of bytes: at LF, CR and CRLF, no others
            if self._after_cr and line == b"\n":
                self._after_cr = False
                continue  # the second half of a CRLF that was cut
            self._after_cr = False
            body = line.rstrip(b"\r\n")
            self._line += body
            if len(self._line) + self._num_data_bytes > _MAX_EVENT_BYTES:
                raise BadStream("an event of more than 16 MiB")
            if len(body) < len(line):
                self._after_cr = line.endswith(b"\r")
                self._end_line(events)
        return events

    def _end_line(self, events: list[str]) -> None:
        line = bytes(self._line)
        self._line.clear()
        if self._is_first_line:
            line = line.removeprefix(codecs.BOM_UTF8)
            self._is_first_line = False
        if not line:
            if self._data:
                events.append(b"\n".join(self._data).decode("utf-8", "replace"))
            self._data.clear()
            self._num_data_bytes = 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._num_data_bytes += len(value)
