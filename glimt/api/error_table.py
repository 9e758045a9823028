"""The table of errors: what each code is answered with, and what it tells a client to do.

A request that can never succeed gets a 4xx outside {408, 409, 429}, because the official client
libraries repeat those and every 5xx.
"""

from typing import NamedTuple

_SERVER = "server_error"
# (OpenAI's type, Anthropic's)
_INVALID = ("invalid_request_error", "invalid_request_error")
_NOT_FOUND = ("not_found_error", "not_found_error")
_FAILED = (_SERVER, "api_error")


class ErrorRow(NamedTuple):
    """One code. `type` is OpenAI's class of errors, `anthropic` Anthropic's."""

    code: str
    status: int
    type: str
    anthropic: str
    when: str
    cure: str


_ROWS = (
    ErrorRow(
        *("invalid_request", 400, *_INVALID),
        "a field has the wrong type, is out of range, or contradicts another",
        "mend the field named in `param`",
    ),
    ErrorRow(
        *("invalid_json", 400, *_INVALID),
        "the body is not JSON in UTF-8",
        "send JSON",
    ),
    ErrorRow(
        *("unknown_field", 400, *_INVALID),
        "a field nobody knows, under `--strict-fields`",
        "leave it out",
    ),
    ErrorRow(
        *("unsupported", 400, *_INVALID),
        "a field or feature Glimt knows of and does not do",
        "leave it out",
    ),
    ErrorRow(
        *("invalid_grammar", 400, *_INVALID),
        "a schema, regular expression or grammar cannot be compiled, has a keyword that cannot "
        "be enforced, or costs too much; `param` is the place",
        "mend it, or make it simpler",
    ),
    ErrorRow(
        *("context_length_exceeded", 400, *_INVALID),
        "the prompt, or prompt and `max_tokens` together, exceed the context; the message has "
        "the numbers",
        "shorten, or ask for less",
    ),
    ErrorRow(
        *("image_parse_error", 400, *_INVALID),
        "an image or video cannot be decoded, is too large, or is more extreme than 200 : 1",
        "send another file",
    ),
    ErrorRow(
        *("media_url_blocked", 400, *_INVALID),
        "the address is not public, not in `--allowed-media-domains`, or not below "
        "`--allowed-local-media-path`",
        "send a `data:` URL",
    ),
    ErrorRow(
        *("media_fetch_failed", 400, *_INVALID),
        "the address gave no usable answer in time; one text for every cause, details are in "
        "the server's log",
        "check the address",
    ),
    ErrorRow(
        *("bad_host", 400, *_INVALID),
        "the Host header is not a host name and port",
        "send one",
    ),
    ErrorRow(
        *("bad_http", 400, *_INVALID),
        "what came is not HTTP/1.1; the connection is closed",
        "speak HTTP/1.1 (without TLS, unless the server has a certificate)",
    ),
    ErrorRow(
        *("invalid_api_key", 401, "authentication_error", "authentication_error"),
        "no key, or none of ours",
        "send `Authorization: Bearer KEY` or `X-Api-Key: KEY`",
    ),
    ErrorRow(
        *("admin_only", 403, "permission_error", "permission_error"),
        "the route is the operator's, and the key is not; or a web page asks for it",
        "use an `--admin-key`",
    ),
    ErrorRow(
        *("model_not_found", 404, *_NOT_FOUND),
        "the `model` field names something else than what is served",
        "see `/v1/models`",
    ),
    ErrorRow(*("not_found", 404, *_NOT_FOUND), "there is nothing at this address", "see `/`"),
    ErrorRow(
        *("method_not_allowed", 405, *_INVALID),
        "the address has no such method",
        "use one that the header `Allow` names",
    ),
    ErrorRow(
        *("head_timeout", 408, "timeout_error", "timeout_error"),
        "the headers arrived too slowly",
        "retry",
    ),
    ErrorRow(
        *("body_timeout", 408, "timeout_error", "timeout_error"),
        "the body arrived too slowly",
        "retry, or send less",
    ),
    ErrorRow(
        *("request_too_large", 413, "request_too_large", "request_too_large"),
        "the body has more bytes than the route takes",
        "send smaller pictures, or addresses of them",
    ),
    ErrorRow(*("uri_too_long", 414, *_INVALID), "path and query are too long", "use the body"),
    ErrorRow(
        *("unsupported_media_type", 415, *_INVALID),
        "Content-Type is not application/json in UTF-8",
        "set it",
    ),
    ErrorRow(
        *("unsupported_encoding", 415, *_INVALID),
        "the body is compressed",
        "send it as it is",
    ),
    ErrorRow(
        *("overloaded", 429, "rate_limit_error", "rate_limit_error"),
        "the server is healthy and full; `Retry-After` says when",
        "retry",
    ),
    ErrorRow(
        *("headers_too_large", 431, *_INVALID),
        "there are too many headers, or too large ones",
        "send fewer",
    ),
    ErrorRow(
        *("engine_failed", 500, *_FAILED),
        "the engine ended the request without its answer",
        "retry once, then report",
    ),
    ErrorRow(
        *("step_failed", 500, *_FAILED),
        "the step that carried the request raised; other requests are not affected",
        "report with the request id",
    ),
    ErrorRow(
        *("numerical_error", 500, *_FAILED),
        "the model produced NaN for this request; other requests are not affected",
        "report with the request id",
    ),
    ErrorRow(
        *("internal_error", 500, *_FAILED),
        "a bug; the message holds a request id and nothing else",
        "report with the request id",
    ),
    ErrorRow(
        *("not_ready", 503, _SERVER, "overloaded_error"),
        "starting, draining, or the engine is being restarted; `Retry-After` says when",
        "retry",
    ),
    ErrorRow(
        *("paused", 503, _SERVER, "overloaded_error"),
        "an operator has paused the server (`POST /pause`)",
        "retry",
    ),
    ErrorRow(
        *("asleep", 503, _SERVER, "overloaded_error"),
        "an operator has put the engine to sleep (`POST /sleep`)",
        "retry",
    ),
    ErrorRow(
        *("first_token_timeout", 504, "timeout_error", "timeout_error"),
        "no token came within `--first-token-timeout`; the request is ended",
        "retry when there is less to do, or send a shorter prompt",
    ),
)

ERRORS = {row.code: row for row in _ROWS}
