"""TLS of the HTTP port: one context, made and checked at start, renewed when its files change."""

import logging
import ssl
from pathlib import Path

import msgspec

from glimt.errors import BadSettings

REFRESH_INTERVAL_S = 10.0

log = logging.getLogger(__name__)


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The files and rules of a server's certificate, as the flags name them."""

    certfile: str
    keyfile: str | None = None  # None = in certfile, too
    ca_certs: str | None = None  # of clients
    cert_reqs: int = 0  # of clients: 0 none, 1 optional, 2 required
    ciphers: str | None = None
    refresh: bool = False


class TlsContext:
    """The context, and when its files were last read."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises BadSettings for files that cannot be read or do not belong together."""
        self._files = files
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self._load()
            self.context.verify_mode = ssl.VerifyMode(files.cert_reqs)
            if files.ciphers is not None:
                self.context.set_ciphers(files.ciphers)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise BadSettings(f"--ssl-certfile and its kin cannot be used: {error}") from None
        self._stamps = self._read_stamps()

    def refresh(self) -> bool:
        """Read the files again if they have changed; True if that was so. New connections use the
        new certificate. What cannot be read is logged, and the old one stays."""
        stamps = self._read_stamps()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self._load()
        except OSError as error:
            log.error("the new certificate cannot be used: %s", error)
            return False
        log.info("the certificate was read again")
        return True

    def _load(self) -> None:
        self.context.load_cert_chain(self._files.certfile, self._files.keyfile)
        if self._files.ca_certs is not None:
            self.context.load_verify_locations(self._files.ca_certs)

    def _read_stamps(self) -> tuple[int, ...]:
        names = (self._files.certfile, self._files.keyfile, self._files.ca_certs)
        return tuple(_changed_ns(Path(name)) for name in names if name is not None)


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # being replaced; its return is a change
