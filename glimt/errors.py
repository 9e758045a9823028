"""Every cause of failure has one class here; only `api/errors.py` knows HTTP statuses.

    GlimtError
    ├─ RequestError(message, code, param)      the client can mend it                    4xx
    │  ├─ InvalidRequest                       wrong type, range, combination            400
    │  ├─ Unsupported                          known to others, not done here            400
    │  ├─ PromptTooLong                        context_length_exceeded                   400
    │  ├─ BadMedia                             undecodable, too large, too extreme       400
    │  ├─ MediaBlocked                         address, path or scheme not allowed       400
    │  ├─ MediaFetchFailed                     one text for every network failure        400
    │  ├─ BadGrammar                           uncompilable, or too complex              400
    │  └─ ModelNotFound                                                                  404
    ├─ Overloaded(retry_after_s)               healthy but full                          429
    ├─ EngineFailed                            the request ended without its answer
    │  ├─ EngineDied                           process gone or restarting                503
    │  ├─ ReplicaLost                          a rank is gone or out of step: the engine ends
    │  ├─ StepFailed                           the step raised                           500
    │  └─ NumericalError                       NaN in this request's logits              500
    └─ StartupError                            refuses to start                          exit 2
       ├─ BadSettings                          flags and environment
       ├─ BadCheckpoint                        files, names, shapes, types
       └─ NotEnoughMemory

Messages say what was wrong, where, and what to do. They never hold addresses, paths that the
client did not write, or exception texts of libraries.
"""

from collections.abc import Sequence


class GlimtError(Exception):
    """Root of all errors raised on purpose. `code` is stable and documented in docs/errors.md."""

    code = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(GlimtError):
    """The request can never succeed as it stands. `param` is the JSON path of the guilty field."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(RequestError):
    """A field has the wrong type, is out of range, or contradicts another."""


class Unsupported(RequestError):
    """A field or feature that Glimt knows of and does not do."""

    code = "unsupported"


class PromptTooLong(RequestError):
    """Prompt, or prompt and asked-for output together, exceed the context. Counts are tokens."""

    code = "context_length_exceeded"


class BadMedia(RequestError):
    """An image or video that cannot be decoded, is too large, or has an extreme shape."""

    code = "image_parse_error"


class MediaBlocked(RequestError):
    """A media address that this server is not allowed to read."""

    code = "media_url_blocked"


class MediaFetchFailed(RequestError):
    """A media address that gave no usable answer; the details are only in the log."""

    code = "media_fetch_failed"


class BadGrammar(RequestError):
    """A schema, expression or grammar that cannot be compiled, or costs too much."""

    code = "invalid_grammar"


class ModelNotFound(RequestError):
    """The `model` field names a model that is not served here."""

    code = "model_not_found"


class Overloaded(GlimtError):
    """The server is healthy and full; try again after `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineFailed(GlimtError):
    """The engine ended the request without its answer."""

    code = "engine_failed"


class EngineDied(EngineFailed):
    """The engine process is gone or not ready; it is being restarted."""

    code = "not_ready"


class EngineAsleep(EngineDied):
    """An operator has put the engine to sleep."""

    code = "asleep"


class ReplicaLost(EngineFailed):
    """The ranks of a replica cannot go on together. Never sent: requests end with EngineDied."""


class StepFailed(EngineFailed):
    """The step that carried the request raised an exception."""

    code = "step_failed"


class NumericalError(EngineFailed):
    """The model produced NaN for this request."""

    code = "numerical_error"


class StartupError(GlimtError):
    """Glimt refuses to start. All problems found are listed at once."""

    code = "startup_error"

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        lines = [message, *(f"  - {problem}" for problem in problems)]
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)


class BadSettings(StartupError):
    """Flags, environment or config file are wrong or ask for what this version cannot do."""

    code = "bad_settings"


class BadCheckpoint(StartupError):
    """The checkpoint's files are missing, damaged, or do not fit the architecture."""

    code = "bad_checkpoint"


class NotEnoughMemory(StartupError):
    """Weights, activations and the smallest useful KV cache do not fit on the device."""

    code = "not_enough_memory"
