"""A model in this process: `glimt.llm.LLM` as a respondent. Imports torch."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from glimt import __version__
from glimt.errors import GlimtError
from glimt.evaluation.replies import Alternatives, Json, Question, Reply, call_of, split_thoughts
from glimt.llm import LLM
from glimt.offline.outputs import CompletionOutput, RequestOutput
from glimt.offline.params import SamplingParams


class LocalModel:
    """A checkpoint that is loaded by `start` and given back by `close`."""

    def __init__(self, model: str, settings: Mapping[str, Any], concurrency: int) -> None:
        """`settings` are arguments of LLM."""
        self.name = model
        self._model = model
        self._settings = dict(settings)
        # Each call waits in a thread; the engine runs as many at once as it has rows.
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="glimt-eval")
        self._llm: LLM | None = None

    async def start(self) -> None:
        """Load. Raises StartupError."""
        self._llm = LLM(self._model, reasoning_parser="glm45", **self._settings)

    async def answer(self, question: Question) -> Reply:
        """The reply; errors of the request are replies, too."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._answer, question
        )

    def facts(self) -> Json:
        """What was loaded, and as what."""
        if self._llm is None:
            return {}
        info = self._llm.info
        return {
            "kind": "checkpoint",
            "model": self._model,
            "device": info.device,
            "dtype": info.dtype,
            "kv_cache_dtype": info.kv_cache_dtype,
            "weights": info.weights_format,
            "glimt": __version__,
            "torch": str(torch.__version__),
        }

    async def close(self) -> None:
        """End what runs and give the memory back."""
        if self._llm is not None:
            self._llm.close()
        self._threads.shutdown(cancel_futures=True)

    def _answer(self, question: Question) -> Reply:
        if self._llm is None:
            raise RuntimeError("not started")
        params = SamplingParams(
            temperature=question.temperature,
            max_tokens=question.max_tokens,
            seed=question.seed,
            logprobs=question.top_logprobs,
        )
        try:
            [output] = self._llm.chat(
                question.messages,
                params,
                tools=question.tools or None,
                chat_template_kwargs={"enable_thinking": question.thinking},
                use_tqdm=False,
            )
        except GlimtError as error:
            return Reply(error=error.code, error_message=error.message)
        return reply_of(output)


def reply_of(output: RequestOutput) -> Reply:
    """The only answer of a request as a reply."""
    [answer] = output.outputs
    text, reasoning = split_thoughts(answer.text, answer.reasoning or "")
    return Reply(
        text=text,
        reasoning=reasoning,
        calls=tuple(call_of(call.name, call.arguments) for call in answer.tool_calls),
        finish_reason=answer.finish_reason,
        prompt_tokens=output.usage.prompt_tokens,
        completion_tokens=output.usage.completion_tokens,
        token_ids=tuple(answer.token_ids),
        alternatives=_alternatives(answer),
    )


def _alternatives(answer: CompletionOutput) -> tuple[Alternatives, ...]:
    """The chosen token comes first in each mapping; the API lists the likeliest only."""
    places = []
    for by_token in answer.logprobs or ():
        chosen, *_ = by_token.values()
        top = sorted(by_token.values(), key=lambda each: each.rank)
        places.append(
            Alternatives(
                chosen.decoded_token,
                chosen.logprob,
                tuple((each.decoded_token, each.logprob) for each in top),
            )
        )
    return tuple(places)
