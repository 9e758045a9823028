"""What the executor remembers of running requests: one permanent row each, from take to free."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from glimt.engine.plan import NewRow, RowWork
from glimt.runner.sampling_rows import SamplingRows
from glimt.runner.staging import Array, to_device
from glimt.wire import ErrorInfo, ImageSpan

# R rows, L tokens of the longest request, P pages of the longest request.
IntArray = npt.NDArray[np.int64]

MAX_OVERRUN = 2
"""Tokens beyond max_model_len that a row has room for: the last one drawn is not computed, and a
step launched before the end was known may draw one more."""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """Embeddings [low, high) of an image, which belong at place `target` of a row's chunk."""

    span: ImageSpan
    low: int
    high: int
    target: int


class RowTable:
    """State by row. Tokens and page table lie on the device, where drawn tokens are appended
    before the host knows them; what only the host decides on lies on the host.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_model_len: int,
        page_size: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        max_tokens = max_model_len + MAX_OVERRUN
        self.device = device
        self.max_rows = max_rows
        self.page_size = page_size
        self.max_pages = -(-max_tokens // page_size)
        # One row more than there are requests: padding draws into it, and nobody reads it.
        self.tokens_RL = torch.zeros(max_rows + 1, max_tokens, dtype=torch.int32, device=device)
        self.spare_place = max_rows * max_tokens
        self.page_table_RP = torch.zeros(max_rows, self.max_pages, dtype=torch.int32, device=device)
        self.pages_RP = np.zeros((max_rows, self.max_pages), np.int32)  # the same, on the host
        self.num_pages_R = np.zeros(max_rows, np.int64)
        self.num_tokens_R = np.zeros(max_rows, np.int64)  # those still on the device included
        self.num_prompt_tokens_R = np.zeros(max_rows, np.int64)
        self.num_prompt_logprobs_R = np.full(max_rows, -1, np.int64)  # -1 = none wanted
        self.rope_delta_R = np.zeros(max_rows, np.int64)
        self.images_end_R = np.zeros(max_rows, np.int64)  # no image token from this index on
        self.sampling = SamplingRows(max_rows, vocab_size)
        self.errors: dict[int, ErrorInfo] = {}  # rows that are lost, until they are freed
        self._positions: dict[int, npt.NDArray[np.int32]] = {}
        self._images: dict[int, tuple[ImageSpan, ...]] = {}
        self._unsent_places: list[IntArray] = []  # of the flat page table

    def take(self, new: NewRow) -> None:
        """Fill a row. Raises ValueError if the request does not fit the table."""
        tokens = np.array(new.token_ids, np.int32)  # a copy: messages' arrays are read-only
        if tokens.size > self.tokens_RL.shape[1]:
            raise ValueError(f"{tokens.size} tokens in a row of {self.tokens_RL.shape[1]}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.sampling.vocab_size:
            raise ValueError("a token id is not in the vocabulary")
        if new.positions is not None and new.positions.shape != (3, new.num_prompt_tokens):
            raise ValueError(f"positions {new.positions.shape} of {new.num_prompt_tokens} tokens")
        self.num_tokens_R[new.row] = tokens.size
        self.num_prompt_tokens_R[new.row] = new.num_prompt_tokens
        self.rope_delta_R[new.row] = new.rope_delta
        wanted = new.sampling.prompt_logprobs
        self.num_prompt_logprobs_R[new.row] = -1 if wanted is None else wanted
        self._positions.pop(new.row, None)
        if new.positions is not None:
            self._positions[new.row] = new.positions
        self._images[new.row] = new.images
        self.images_end_R[new.row] = max((i.start + i.num_tokens for i in new.images), default=0)
        self.num_pages_R[new.row] = 0
        self._append(new.row, new.page_ids)
        self.sampling.take(new.row, new.num_prompt_tokens, new.sampling)
        sent = to_device({"tokens": tokens}, self.device)["tokens"]
        self.tokens_RL[new.row, : tokens.size] = sent

    def free(self, row: int) -> None:
        """Forget a row; no work is accepted for it before the next `take`."""
        self.errors.pop(row, None)
        self._positions.pop(row, None)
        self._images.pop(row, None)
        self.num_tokens_R[row] = self.num_pages_R[row] = self.images_end_R[row] = 0
        self.num_prompt_logprobs_R[row] = -1

    def advance(self, work: list[RowWork]) -> None:
        """Append the new pages of `work` to its rows, and count the tokens it draws as known.

        Raises ValueError beyond the table.
        """
        for item in work:
            if item.new_pages:
                self._append(item.row, item.new_pages)
            if item.samples:
                self.num_tokens_R[item.row] = item.start + item.num_tokens + 1

    def send_pages(self) -> None:
        """Bring the device's page table up to date."""
        if not self._unsent_places:
            return
        # Unique: a step that crashed may have left places that were filled anew since.
        place = np.unique(np.concatenate(self._unsent_places))
        self._unsent_places.clear()
        arrays: dict[str, Array] = {"place": place, "page": self.pages_RP.reshape(-1)[place]}
        sent = to_device(arrays, self.device)
        self.page_table_RP.view(-1)[sent["place"]] = sent["page"]

    def positions(self, row: int, start: int, stop: int) -> npt.NDArray[np.int32] | None:
        """Positions [3, n] of the prompt tokens in [start, stop); None where they just count up."""
        positions = self._positions.get(row)
        return None if positions is None else positions[:, start:stop]

    def image_parts(self, row: int, start: int, stop: int) -> list[ImagePart]:
        """The parts of the row's images that lie in [start, stop), in order."""
        if start >= self.images_end_R[row]:
            return []
        parts = []
        for span in self._images[row]:
            low, high = max(start, span.start), min(stop, span.start + span.num_tokens)
            if low < high:
                parts.append(ImagePart(span, low - span.start, high - span.start, low - start))
        return parts

    def _append(self, row: int, pages: tuple[int, ...]) -> None:
        first = int(self.num_pages_R[row])
        if first + len(pages) > self.max_pages:
            raise ValueError(f"row {row} has {first + len(pages)} pages of {self.max_pages}")
        self.pages_RP[row, first : first + len(pages)] = pages
        self.num_pages_R[row] += len(pages)
        place = np.arange(len(pages), dtype=np.int64) + (row * self.max_pages + first)
        self._unsent_places.append(place)
