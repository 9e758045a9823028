"""What a request's server is told: of each token, and of the end, whatever has ended it."""

from glimt.engine.request import Request
from glimt.wire import ErrorInfo, Output, Submit, TokenLogprobs

Addressed = tuple[int, Output]  # the first is the server


def of_token(request: Request, finish_reason: str | None, logprobs: TokenLogprobs | None) -> Output:
    """The output of a request's newest token; terminal if that has ended it."""
    submit, token_id = request.submit, request.output_ids[-1]
    return Output(
        submit.request_id,
        (token_id,),
        finish_reason,
        token_id if finish_reason == "stop" and token_id in request.stop_ids else None,
        None if logprobs is None else (logprobs,),
        None,
        request.num_cached_tokens,
        request.scheduled_s,
        request.prompt_logprobs_to_send,
    )


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
