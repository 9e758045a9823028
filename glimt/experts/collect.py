"""Asks a running server how many tokens chose each expert: all so far, or those of some seconds."""

import json
import time
import urllib.error
import urllib.request

import msgspec

from glimt.errors import BadSettings
from glimt.experts.load import ExpertLoad

_TIMEOUT_S = 120.0  # of an answer, which waits for the steps under way


def collect(base_url: str, admin_key: str, seconds: float | None) -> ExpertLoad:
    """All since the server's engines started, or what comes in the next `seconds`.

    Raises BadSettings if the server cannot be asked, with what it says.
    """
    first = ask(base_url, admin_key)
    if seconds is None:
        return first
    time.sleep(seconds)
    later = ask(base_url, admin_key).since(first)
    return msgspec.structs.replace(later, seconds=seconds)


def ask(base_url: str, admin_key: str) -> ExpertLoad:
    """One answer. Raises BadSettings."""
    address = base_url.rstrip("/").removesuffix("/v1") + "/expert_load"
    if not address.startswith(("http://", "https://")):
        raise BadSettings(f"--base-url {base_url}: write http://host:port")
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {admin_key}"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read(), type=ExpertLoad)
    except urllib.error.HTTPError as error:
        raise BadSettings(f"{address} answers {error.code}: {_said(error)}") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise BadSettings(f"{address} cannot be asked: {error}") from None


def _said(error: urllib.error.HTTPError) -> str:
    if error.code == 404:
        return "the server must be started with --admin-key and --enable-expert-load-metrics"
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return error.reason
