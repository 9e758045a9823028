"""StepDraft: one step in the making, within its budgets."""

from glimt.engine.image_cache import CachedImage, ImageCache
from glimt.engine.limits import SchedulerLimits
from glimt.engine.plan import NewRow, RowWork
from glimt.engine.request import Request
from glimt.wire import ImageSpan


class StepDraft:
    """Collects the work of step number `step`, and claims the image embeddings it needs."""

    def __init__(self, step: int, limits: SchedulerLimits, images: ImageCache) -> None:
        self.step = step
        self.token_budget = limits.max_num_batched_tokens
        self.image_budget = limits.image_budget
        self.work: list[RowWork] = []
        self.requests: list[Request] = []  # parallel to work
        self.new_rows: list[NewRow] = []
        self.encode: list[ImageSpan] = []
        self.num_image_queries = 0
        self.waits_for_masks = False
        self.may_wait = not limits.encodes_beside  # for images that are not encoded yet
        self.holds_back = False  # a request, for such images
        self._images = images
        self._with_images: list[Request] = []
        self._no_more_images = False

    def claim_images(self, request: Request, num_tokens: int) -> int | None:
        """How many of its next `num_tokens` tokens can be computed in this step; None if some of
        their images are still on their way, and the step must not wait for them.

        Their embeddings are then held by the request until its KV has passed them. The first
        request that finds no room or no budget closes the cache for all behind it in this step,
        so that small images cannot keep a large one waiting for ever.
        """
        start = request.num_computed_tokens
        end = start + num_tokens
        is_ready = True
        for span in request.images:
            if span.start >= end:
                break
            span_end = span.start + span.num_tokens
            if span_end <= start:
                continue
            image = self._claim(request, span, span_end)
            if image is None:
                end = max(span.start, start)
                break
            is_ready &= image.is_ready
        if is_ready or self.may_wait:
            return end - start
        # All at once when they are ready: a chunk of the few tokens before an image would cost
        # those who decode beside it more than it gains.
        self.holds_back = True
        return None

    def add(self, request: Request, num_tokens: int) -> None:
        """The request computes its next `num_tokens` tokens in this step."""
        start = request.num_computed_tokens
        samples = request.advance(num_tokens)
        if samples and request.may_be_masked:
            self.waits_for_masks = True
        new_pages = request.tell_pages()
        self.work.append(RowWork(request.row, start, num_tokens, new_pages, samples))
        self.requests.append(request)
        self.token_budget -= num_tokens

    def add_decode(self, request: Request, new_pages: tuple[int, ...] = ()) -> None:
        """`add` for a request whose every token but the last is computed: the usual case."""
        start = request.num_computed_tokens
        request.advance_by_one()
        if request.may_be_masked:
            self.waits_for_masks = True
        self.work.append(RowWork(request.row, start, 1, new_pages, True))
        self.requests.append(request)
        self.token_budget -= 1

    def release_passed_images(self) -> None:
        """Give back embeddings that no later step of their request needs.

        Not before the step is complete: what is released may be dropped, and a plan drops before
        it computes.
        """
        for request in self._with_images:
            held, reached = request.held_images, request.num_computed_tokens
            for end in [end for end in held if end <= reached]:
                self._images.release(held.pop(end))

    def _claim(self, request: Request, span: ImageSpan, span_end: int) -> CachedImage | None:
        held = request.held_images.get(span_end)
        if held is not None and held.is_live:
            self._note(request)
            return held
        if self._no_more_images:
            return None
        image = self._images.find(span.content_hash) or self._encode(request, span)
        if image is None:
            self._no_more_images = True
            return None
        self.num_image_queries += 1
        self._images.hold(image)
        if held is not None:
            self._images.release(held)
        request.held_images[span_end] = image
        self._note(request)
        return image

    def _encode(self, request: Request, span: ImageSpan) -> CachedImage | None:
        if span.num_tokens > self.image_budget:
            return None
        image = self._images.add(span.content_hash, span.num_tokens)
        if image is not None:
            self.image_budget -= span.num_tokens
            self.encode.append(span)
            request.last_encode_step = self.step
        return image

    def _note(self, request: Request) -> None:
        if not self._with_images or self._with_images[-1] is not request:
            self._with_images.append(request)
