"""Proves the invariants that span several owners: pages, images, rows and requests together."""

from collections.abc import Sequence

from glimt.engine.image_cache import ImageCache
from glimt.engine.limits import SchedulerLimits
from glimt.engine.pages import PagePool
from glimt.engine.queue import RequestQueue
from glimt.engine.request import NO_ROW, Request, RequestState


def audit(
    limits: SchedulerLimits,
    pool: PagePool,
    images: ImageCache,
    running: RequestQueue,
    waiting: RequestQueue,
    free_rows: Sequence[int],
) -> list[str]:
    """Violations; empty if all is well. Costs as much as everything held: for tests and idle."""
    page_size = limits.page_size
    tables = [(r.page_ids, r.num_computed_tokens // page_size) for r in running.requests]
    held = [image for r in running.requests for image in r.held_images.values()]
    found = [*pool.check(tables), *images.check(held)]
    for request in running.requests:
        found += _check_running(request, limits, pool)
    for request in waiting.requests:
        if request.state is not RequestState.WAITING or request.row != NO_ROW or request.page_ids:
            found.append(f"request {request.key} waits and holds something")
    for queue in (running, waiting):
        ranks = [request.rank for request in queue.requests]
        if ranks != sorted(ranks):
            found.append("a queue is out of order")
    rows = [request.row for request in running.requests]
    if sorted([*rows, *free_rows]) != list(range(limits.max_num_seqs)):
        found.append("rows are lost or double")
    return found


def _check_running(request: Request, limits: SchedulerLimits, pool: PagePool) -> list[str]:
    found: list[str] = []
    name = f"request {request.key}"
    num_known = request.num_known_tokens
    if request.state is not RequestState.RUNNING:
        found.append(f"{name} is queued as running and is not")
    least = limits.num_pages_for(request.num_computed_tokens)
    if not least <= len(request.page_ids) <= limits.num_pages_for(request.num_tokens):
        found.append(f"{name} has {len(request.page_ids)} pages")
    if not num_known <= request.num_tokens <= request.max_num_tokens:
        found.append(f"{name} has {request.num_tokens} tokens, {num_known} known")
    if request.num_computed_tokens >= request.num_tokens:
        found.append(f"{name} has computed tokens that it does not have")
    num_full = min(num_known, request.num_computed_tokens) // limits.page_size
    for place, page in enumerate(request.page_ids[:num_full]):
        if pool.hash_of(page) not in (None, request.page_hash(place, limits.page_size)):
            found.append(f"page {page} of {name} is known by another content's hash")
    return found
