"""The event log of a run: what was seen, and when, of every request.

All times are integer nanoseconds of one monotonic clock, counted from the start of the run
(warm-ups are before it and have negative times). Whatever a report shows is computed from these
events alone, so a saved log gives the same figures again (`glimt bench report`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from glimt.errors import BadSettings

FORMAT = "glimt-bench-1"

Phase = Literal["run", "warmup", "probe"]
# connect: no connection; http: a status other than 200; error_event: the stream told of an error;
# broken: the connection ended or the stream could not be read; timeout; truncated: the stream ended
# without a finish reason; no_tokens: a complete answer without a token; cancelled: by the user.
Failure = Literal[
    "connect", "http", "error_event", "broken", "timeout", "truncated", "no_tokens", "cancelled"
]


class RunStart(msgspec.Struct, kw_only=True, tag="start", tag_field="event"):
    """The head of the log: what was asked for, by which client, of which server."""

    format: str = FORMAT
    date: str  # ISO 8601
    backend: str
    model: str
    tokenizer: str | None = None
    arguments: list[str] = []
    settings: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    num_prompts: int = 0
    request_rate: float | None = None  # None: all at once
    burstiness: float = 1.0
    max_concurrency: int | None = None
    ramp_up: tuple[str, int, int] | None = None
    ignore_eos: bool = False
    vllm_compat: bool = False
    repeat: int = 0


class RequestEvent(msgspec.Struct, kw_only=True, tag="request", tag_field="event"):
    """One request from its intended time to its last byte.

    `chunk_kinds` has one letter for each chunk of the answer that carries generated tokens: r
    thinking, c content, t tool call, s a token without text, e the last chunk with an empty text
    (which is a token for some servers, and only an end mark for others).
    """

    index: int
    phase: Phase = "run"
    conversation: int = 0
    turn: int = 0
    worker: int = 0
    intended_ns: int  # when the schedule wants it to leave
    fired_ns: int  # when the client came to it
    admitted_ns: int  # when the concurrency limit let it pass
    start_ns: int  # just before it is handed to the connection
    connected_ns: int | None = None  # a new connection was there (None: an open one was used)
    sent_ns: int | None = None  # the last byte of the body was given to the kernel
    headers_ns: int | None = None  # the answer's headers
    end_ns: int  # the answer's last byte, or the failure
    status: int | None = None
    failure: Failure | None = None
    error: str = ""
    finish_reason: str | None = None
    chunk_ns: list[int] = []
    chunk_kinds: str = ""
    chunk_chars: list[int] = []
    chunk_tokens: list[int] | None = None  # if the server counts tokens in each chunk
    num_reads: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    image_tokens: int | None = None  # as the server counts them, if it does
    asked_tokens: int
    text_tokens: int | None = None  # of the prompt's texts, by the client's tokenizer
    num_images: int = 0
    image_pixels: int = 0
    body_bytes: int = 0
    server_queue_ms: float | None = None
    server_ttft_ms: float | None = None
    model: str | None = None  # where requests go to several
    content: str | None = None  # texts are kept on demand
    reasoning: str | None = None


class HealthEvent(msgspec.Struct, kw_only=True, tag="health", tag_field="event"):
    """How the client itself did since the sample before."""

    at_ns: int
    worker: int = 0
    cpu: float  # of one core
    loop_lag_ns: int
    in_flight: int


class ServerEvent(msgspec.Struct, kw_only=True, tag="server", tag_field="event"):
    """The server's own counters and gauges, labels summed up."""

    at_ns: int
    values: dict[str, float]


class PowerEvent(msgspec.Struct, kw_only=True, tag="power", tag_field="event"):
    """The local GPUs: watts of each, use (0 to 1) and energy counters where all of them tell."""

    at_ns: int
    watts: list[float]
    utilisation: list[float]  # empty: not told
    joules: list[float] | None = None


class RunEnd(msgspec.Struct, kw_only=True, tag="end", tag_field="event"):
    """The clock stopped: the last answer was complete."""

    end_ns: int
    notes: list[str] = []
    is_interrupted: bool = False  # by the user: the figures are those of a part of the run


Event = RunStart | RequestEvent | HealthEvent | ServerEvent | PowerEvent | RunEnd


class EventLog(msgspec.Struct, kw_only=True):
    """All events of one run, by kind, each in the order of time (requests: of their index)."""

    start: RunStart
    requests: list[RequestEvent] = []
    health: list[HealthEvent] = []
    server: list[ServerEvent] = []
    power: list[PowerEvent] = []
    end: RunEnd
    told_doubts: list[str] = []  # of a saved result, which has no health: what its client said

    def events(self) -> Iterator[Event]:
        """The log as a sequence, head first and end last."""
        yield self.start
        yield from self.requests
        yield from self.health
        yield from self.server
        yield from self.power
        yield self.end


def write_log(path: Path, logs: Iterable[EventLog]) -> None:
    """Write logs as JSON lines, one event each. Raises BadSettings if that fails."""
    encoder = msgspec.json.Encoder()
    try:
        with path.open("wb") as file:
            for log in logs:
                for event in log.events():
                    file.write(encoder.encode(event) + b"\n")
    except OSError as error:
        raise BadSettings(f"{path} cannot be written: {error.strerror}") from None


def read_log(path: Path) -> list[EventLog]:
    """The runs of a file of `write_log`.

    Raises BadSettings if it is not one, or ends before its last run does.
    """
    decoder = msgspec.json.Decoder(Event)
    logs: list[EventLog] = []
    start: RunStart | None = None
    pending = _Pending()
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            event = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise BadSettings(f"{path}, line {number}: not an event log ({error})") from None
        if isinstance(event, RunStart):
            if event.format != FORMAT:
                raise BadSettings(f"{path}: format {event.format!r}, this version reads {FORMAT}")
            start, pending = event, _Pending()
        elif start is None:
            raise BadSettings(f"{path}, line {number}: an event before the start of a run")
        elif isinstance(event, RunEnd):
            logs.append(pending.log(start, event))
            start = None
        else:
            pending.add(event)
    if start is not None or not logs:
        raise BadSettings(f"{path} ends before its run does")
    return logs


class _Pending:
    """The events of a run whose end has not been read yet."""

    def __init__(self) -> None:
        self._requests: list[RequestEvent] = []
        self._health: list[HealthEvent] = []
        self._server: list[ServerEvent] = []
        self._power: list[PowerEvent] = []

    def add(self, event: RequestEvent | HealthEvent | ServerEvent | PowerEvent) -> None:
        if isinstance(event, RequestEvent):
            self._requests.append(event)
        elif isinstance(event, HealthEvent):
            self._health.append(event)
        elif isinstance(event, ServerEvent):
            self._server.append(event)
        else:
            self._power.append(event)

    def log(self, start: RunStart, end: RunEnd) -> EventLog:
        return EventLog(
            start=start,
            requests=self._requests,
            health=self._health,
            server=self._server,
            power=self._power,
            end=end,
        )
