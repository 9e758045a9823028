"""Reads media addresses by a grammar of our own, stricter than any library's.

Parsers disagree about backslashes, user names, tabs and odd numbers, and each disagreement has been
somebody's hole. Here an address is taken apart once; what is not plainly right is refused, and
only what is put together again from the parts is ever used.
"""

import ipaddress
import re
from dataclasses import dataclass, replace

from glimt.errors import BadMedia, MediaBlocked

MAX_URL_CHARS = 8192  # data: URLs apart
MAX_DATA_HEADER_CHARS = 256

_PCHAR = r"[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2}"
_HTTP = re.compile(
    r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://"
    r"(?P<host>[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    rf"(?P<path>/(?:{_PCHAR}|/)*)?"
    rf"(?P<query>\?(?:{_PCHAR}|[/?])*)?"
    rf"(?:#(?:{_PCHAR}|[/?])*)?"
)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label that some parsers take for an IPv4
_DATA = re.compile(
    r"data:(?P<kind>image|video)/(?P<subtype>[a-z0-9.+\-]{1,64})"
    r"(?:;[a-z0-9\-]{1,32}=[A-Za-z0-9.+_\-]{1,64})*;base64,",
    re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class WebAddress:
    """An http or https address in its parts; `str()` is its only spelling.

    `host` is a lower-case name of at least two labels, or the canonical text of an IP address.
    """

    scheme: str
    host: str
    port: int
    target: str  # path and query

    @property
    def is_ip(self) -> bool:
        """The host is an address, not a name."""
        return ":" in self.host or self.host.rpartition(".")[2].isdigit()

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.target}"


def parse_web_address(url: str, param: str | None = None) -> WebAddress:
    """Take an http(s) address apart. Raises MediaBlocked."""
    match = _HTTP.fullmatch(url) if len(url) <= MAX_URL_CHARS else None
    if match is None:
        raise MediaBlocked(
            "the address is not a plain http or https URL: ASCII characters, no user name, "
            f"{MAX_URL_CHARS:,} characters at most",
            param=param,
        )
    scheme = match["scheme"].lower()
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme]
    target = (match["path"] or "/") + (match["query"] or "")
    return WebAddress(scheme, _host(match["host"].lower(), param), port, target)


def parse_redirect(location: str, origin: WebAddress, param: str | None = None) -> WebAddress:
    """Where a Location header points: a whole address, or a path on the same host.

    Raises MediaBlocked, also for going from https to http.
    """
    is_path = location.startswith("/") and not location.startswith("//")
    base = str(replace(origin, target="")) if is_path else ""
    address = parse_web_address(base + location, param)
    if origin.scheme == "https" and address.scheme == "http":
        raise MediaBlocked("the address redirects from https to http", param=param)
    return address


def data_start(url: str, param: str | None = None) -> int:
    """Where the base64 text of a data: URL begins. Raises BadMedia."""
    match = _DATA.match(url[:MAX_DATA_HEADER_CHARS])
    if match and (match["kind"].lower(), match["subtype"].lower()) == ("video", "jpeg"):
        raise BadMedia(
            "a row of JPEG pictures is not read as a video: send MP4, WebM, MKV, MOV or animated "
            "GIF, or each picture as an image",
            param=param,
        )
    if match is None:
        raise BadMedia(
            "a data: URL must begin with data:image/…;base64, or data:video/…;base64,", param=param
        )
    return match.end()


def _host(text: str, param: str | None) -> str:
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise MediaBlocked("the address has no valid host", param=param) from None
    labels = text.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise MediaBlocked("the address has no valid host", param=param) from None
    # One label is a name of this network, never of the public one.
    is_name = len(labels) >= 2 and len(text) <= 253 and all(map(_LABEL.fullmatch, labels))
    if not is_name:
        raise MediaBlocked("the address has no valid host", param=param)
    return text
