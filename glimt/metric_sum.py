"""The series of several server processes as those of one: whoever is asked for them adds all up.

Every server writes what it counted into shared memory, once a second and whenever it is asked. So
nobody waits for a server that is busy or stopped, and what a dead one had counted stays: its
successor counts on from there, and no counter ever falls.

    counters and histograms      added up
    counters of engines          all servers are told the same: the greatest
    gauges of a server           added up, unless they are older than five seconds
    all else                     as the server that is asked knows it
"""

import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

MAX_GAUGE_AGE_S = 5.0
SUMMED_GAUGES = frozenset(
    {
        "glimt:num_media_waiting",
        "glimt:num_requests_preparing",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
    }
)
MEDIA_MEMORY_GAUGES = frozenset({"glimt:media_memory_free_bytes", "glimt:media_memory_items"})

_SLOT_BYTES = 4 * 2**20  # memory is taken as it is touched: about 100 KB
_PAGE_BYTES = 4096
_PART_BYTES = _PAGE_BYTES + 2 * _SLOT_BYTES
_HEAD = struct.Struct("<QQ")  # length, checksum
_COUNTED = ("counter", "histogram", "summary")


class Ledger:
    """A text for each server in one anonymous file. Each writes its own and reads all.

    A writer may be killed at any point: there are two slots, and which of them holds is written
    last, in one byte.
    """

    def __init__(self, fd: int, server: int, num_servers: int) -> None:
        """`fd`: of an anonymous file of `nbytes(num_servers)`."""
        self.server = server
        self.num_servers = num_servers
        self._fd = fd

    @staticmethod
    def nbytes(num_servers: int) -> int:
        """Size of the file."""
        return num_servers * _PART_BYTES

    def write(self, text: bytes) -> None:
        """Replace this server's text. Raises ValueError if it is too long."""
        if _HEAD.size + len(text) > _SLOT_BYTES:
            raise ValueError(f"{len(text)} bytes do not fit into a slot of {_SLOT_BYTES}")
        part = self.server * _PART_BYTES
        slot = 1 - os.pread(self._fd, 1, part)[0]
        data = _HEAD.pack(len(text), zlib.crc32(text)) + text
        if os.pwrite(self._fd, data, part + _PAGE_BYTES + slot * _SLOT_BYTES) == len(data):
            os.pwrite(self._fd, bytes([slot]), part)  # else memory is short, and the old text holds

    def read(self, server: int) -> bytes:
        """The last text of a server; empty if it has written none."""
        part = server * _PART_BYTES
        while True:  # again only if it was replaced twice while it was read
            start = part + _PAGE_BYTES + os.pread(self._fd, 1, part)[0] * _SLOT_BYTES
            length, checksum = _HEAD.unpack(os.pread(self._fd, _HEAD.size, start))
            text = os.pread(self._fd, length, start + _HEAD.size)
            if zlib.crc32(text) == checksum:
                return text


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """One sample."""

    name: str
    labels: dict[str, str]
    value: float


class _Page(msgspec.Struct, frozen=True, array_like=True):
    """What one server knew at `written_s`, by family."""

    written_s: float  # monotonic, the same clock for all processes
    families: dict[str, tuple[_Row, ...]]


class _How(Enum):
    """What becomes of the samples of several servers."""

    COUNTED = "added up, those of dead servers too"
    GREATEST = "the greatest holds"
    GAUGED = "added up while they are fresh"
    OWN = "one's own hold"


class SummedSeries(Collector):
    """The families of `registry`, over all servers of a ledger."""

    def __init__(
        self,
        registry: CollectorRegistry,
        engines: Collector,
        ledger: Ledger,
        summed_gauges: frozenset[str] = SUMMED_GAUGES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`engines` has the series that come from engines; it is part of `registry`."""
        self._registry = registry
        self._engines = engines
        self._ledger = ledger
        self._summed_gauges = summed_gauges
        self._clock = clock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(_Page)
        self._before = self._read(ledger.server)  # of this server's dead predecessors

    def publish(self) -> list[Metric]:
        """Write down what this server knows, for the others; and give it."""
        of_engines = {family.name for family in self._engines.collect()}
        families = list(self._registry.collect())
        shown = {}
        for family in families:
            how = self._how(family, of_engines)
            if how is _How.COUNTED and self._before is not None:
                _merge(family, self._before.families.get(family.name, ()), max_only=False)
            if how is not _How.OWN:
                shown[family.name] = tuple(
                    _Row(sample.name, sample.labels, sample.value) for sample in family.samples
                )
        self._ledger.write(self._encoder.encode(_Page(self._clock(), shown)))
        return families

    def collect(self) -> Iterator[Metric]:
        """All families; publishes first, so that the next server asked knows no less."""
        families = self.publish()
        of_engines = {family.name for family in self._engines.collect()}
        others = [
            page
            for server in range(self._ledger.num_servers)
            if server != self._ledger.server and (page := self._read(server)) is not None
        ]
        now_s = self._clock()
        for family in families:
            how = self._how(family, of_engines)
            for page in others:
                is_old = now_s - page.written_s > MAX_GAUGE_AGE_S
                if how is _How.OWN or (how is _How.GAUGED and is_old):
                    continue
                rows = page.families.get(family.name, ())
                _merge(family, rows, max_only=how is _How.GREATEST)
            yield family

    def _how(self, family: Metric, of_engines: Iterable[str]) -> _How:
        if family.type in _COUNTED:
            return _How.GREATEST if family.name in of_engines else _How.COUNTED
        return _How.GAUGED if family.name in self._summed_gauges else _How.OWN

    def _read(self, server: int) -> _Page | None:
        text = self._ledger.read(server)
        return self._decoder.decode(text) if text else None


def _merge(family: Metric, rows: Sequence[_Row], *, max_only: bool) -> None:
    """Bring the samples of another server into those of `family`."""
    samples = family.samples
    places = {_key(sample.name, sample.labels): at for at, sample in enumerate(samples)}
    for row in rows:
        at = places.get(_key(row.name, row.labels))
        if at is None:
            samples.append(Sample(row.name, row.labels, row.value))
            continue
        own = samples[at].value
        value = max(own, row.value) if max_only else own + row.value
        samples[at] = samples[at]._replace(value=value)


def _key(name: str, labels: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))
