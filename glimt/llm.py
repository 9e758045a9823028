"""LLM: the offline API. The server's frontend, scheduler, executor and model in one process.

from glimt import LLM, SamplingParams
llm = LLM("zai-org/GLM-4.6V-Flash")
[output] = llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=64))
print(output.outputs[0].text)
"""

import random
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from tqdm import tqdm

from glimt.builtin import model as builtin
from glimt.errors import InvalidRequest
from glimt.offline.messages import plain_messages
from glimt.offline.outputs import RequestOutput
from glimt.offline.params import SamplingParams, request_of
from glimt.offline.prompts import Job
from glimt.offline.session import Session
from glimt.offline.wishes import settings_of
from glimt.wire import EngineInfo

Message = Mapping[str, Any]
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded model that answers prompts. Names and meanings are vLLM's.

    May be used from several threads at once. Close it (`with`, `close`, or when nothing refers
    to it any more) to end its threads and give its memory back.
    """

    def __init__(
        self,
        model: str | Path = builtin.NAME,
        *,
        dtype: str = "auto",
        max_model_len: int | str | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        gpu_memory_utilization: float = 0.92,
        kv_cache_dtype: str = "auto",
        quantization: str | None = None,
        load_format: str = "auto",
        hf_overrides: Mapping[str, Any] | None = None,
        enable_prefix_caching: bool = True,
        seed: int = 0,
        chat_template: str | Path | None = None,
        allowed_local_media_path: str | Path | None = None,
        limit_mm_per_prompt: Mapping[str, int] | None = None,
        reasoning_parser: str | None = None,
        **settings: Any,
    ) -> None:
        """Find the checkpoint `model` (a folder, or owner/name on the hub; the built-in one if none
        is named), load it, start.

        Everything means what the flag of `glimt serve` means, and so do other flags' names in
        `settings` (`revision=…`, `block_size=…`, `device="cpu"`). `chat_template` is a file.

        Raises StartupError (BadSettings, BadCheckpoint, NotEnoughMemory) and, for names that are
        no setting, TypeError.
        """
        wishes = {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "gpu_memory_utilization": gpu_memory_utilization,
            "kv_cache_dtype": kv_cache_dtype,
            "quantization": quantization,
            "load_format": load_format,
            "hf_overrides": hf_overrides,
            "enable_prefix_caching": enable_prefix_caching,
            "seed": seed,
            "chat_template": chat_template,
            "allowed_local_media_path": allowed_local_media_path,
            "limit_mm_per_prompt": limit_mm_per_prompt,
            "reasoning_parser": reasoning_parser,
        }
        self._random = random.Random(seed)
        self._session = Session(settings_of(model, wishes | settings))
        # The session's threads know nothing of this object, so that it can be collected.
        self._finalizer = weakref.finalize(self, self._session.close)

    @property
    def info(self) -> EngineInfo:
        """What the engine resolved: context length, pages, types, start-up times."""
        return self._session.info

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several at once; the answers are in their order.

        Messages are as in the HTTP API; images may also be `{"type": "image", "image": x}` with
        an image of PIL or a `pathlib.Path`, videos `{"type": "video", "video": path}`.
        `sampling_params`: one for all, or one for each. `tools` and `tool_choice` are those of the
        HTTP API; calls are in the outputs' `tool_calls`.

        Raises RequestError naming the field (InvalidRequest, PromptTooLong, BadMedia, …) and
        EngineFailed. One bad conversation ends the whole call.
        """
        conversations: list[Any] = list(messages)
        if not conversations or isinstance(conversations[0], Mapping):
            conversations = [conversations]
        fields = {
            "chat_template_kwargs": dict(chat_template_kwargs or {}),
            "add_generation_prompt": add_generation_prompt,
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "tool_choice": tool_choice,
        }
        jobs = []
        for conversation, params in _paired(conversations, sampling_params):
            plain = plain_messages(conversation)
            request = request_of(params, plain.messages, **fields)
            jobs.append(Job(self._seeded(request), None, plain.pictures))
        return self._answer(jobs, use_tqdm)

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continue one bare text or list of token ids, or several at once.

        A text gets the family's `[gMASK]<sop>` in front and nothing else; nothing in it becomes
        a control token. Raises as `chat`.
        """
        batch: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
        if batch and isinstance(batch[0], int):
            batch = [batch]
        jobs = [
            Job(self._seeded(request_of(params)), _bare_prompt(prompt), {})
            for prompt, params in _paired(batch, sampling_params)
        ]
        return self._answer(jobs, use_tqdm)

    def close(self) -> None:
        """End all threads and give the memory back; calls that still run raise EngineDied."""
        self._finalizer()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, jobs: list[Job], use_tqdm: bool) -> list[RequestOutput]:
        with tqdm(total=len(jobs), desc="answers", disable=not use_tqdm) as bar:
            return self._session.answer_all(jobs, bar.update)

    def _seeded(self, request: Any) -> Any:
        """Requests without a seed draw it here, in the order of the calls: a program that runs
        again gives the same answers."""
        if request.seed in (None, -1):
            return msgspec.structs.replace(request, seed=self._random.getrandbits(63))
        return request


def _paired(prompts: list[Any], params: Params) -> list[tuple[Any, SamplingParams]]:
    if params is None or isinstance(params, SamplingParams):
        return [(prompt, params or SamplingParams()) for prompt in prompts]
    if len(params) != len(prompts):
        raise InvalidRequest(
            f"there are {len(prompts)} prompts and {len(params)} sampling_params",
            param="sampling_params",
        )
    return list(zip(prompts, params, strict=True))


def _bare_prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    try:
        return msgspec.convert(prompt, list[int])
    except msgspec.ValidationError:
        raise InvalidRequest("a prompt is text or a list of token ids", param="prompt") from None
