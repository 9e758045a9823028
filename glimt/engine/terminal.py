"""Terminal outputs: the one answer that ends a request, whatever ended it."""

from glimt.engine.request import Request
from glimt.wire import ErrorInfo, Output, Submit

Addressed = tuple[int, Output]  # the first is the server


def refuse(submit: Submit, error: ErrorInfo) -> Addressed:
    """The terminal output of a Submit that is not taken on."""
    return submit.server, Output(submit.request_id, (), "error", error=error)


def terminal(request: Request, finish_reason: str, error: ErrorInfo | None = None) -> Output:
    """The terminal output of a request that ends without another token."""
    return Output(
        request.submit.request_id,
        (),
        finish_reason,
        error=error,
        num_cached_tokens=request.num_cached_tokens,
        scheduled_s=request.scheduled_s,
    )
