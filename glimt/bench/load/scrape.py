"""Reads a server's /metrics: Prometheus text, each name's samples summed over its labels."""

import re

_SAMPLE = re.compile(
    rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})?\s+([-+0-9.eE]+|NaN|[-+]?Inf)", re.MULTILINE
)
_KEPT = re.compile(
    r"(running|waiting|queue|cache|preempt|spec_decode|prompt_tokens|generation_tokens|"
    r"_requests?_|request_success|kv_|encoder|image|mm_)"
)


def parse_metrics(text: bytes) -> dict[str, float]:
    """Values by name, without buckets of histograms and without what says nothing of load."""
    values: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        key = name.decode()
        if key.endswith(("_bucket", "_created")) or not _KEPT.search(key):
            continue
        number = float(value)
        if number == number and abs(number) != float("inf"):  # JSON has neither
            values[key] = values.get(key, 0.0) + number
    return values
