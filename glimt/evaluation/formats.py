"""Whether an answer has the form that was asked for, whatever it says.

Grammar of GLM's output: thoughts closed before the answer, boxes between marks, tool calls whole.
"""

from collections.abc import Iterator

from glimt.evaluation.boxes import is_one_well_formed_box
from glimt.evaluation.replies import Reply
from glimt.evaluation.tasks import Task

# Marks that a parser has taken out of every call that it understood.
_CALL_MARKS = (
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
)


def is_in_format(task: Task, reply: Reply, *, thinking: bool) -> bool | None:
    """All demands of form are met; None where the task makes none."""
    if not (thinking or task.tools or task.metric in ("iou", "tool_call", "format")):
        return None
    return reply.error is None and all(_demands(task, reply, thinking=thinking))


def _demands(task: Task, reply: Reply, *, thinking: bool) -> Iterator[bool]:
    has_answer = bool(reply.text.strip() or reply.calls)
    if thinking:
        # Thoughts that were never closed have swallowed the answer.
        yield bool(reply.reasoning.strip()) and has_answer
        yield "<think>" not in reply.text and "</think>" not in reply.text
    if task.metric == "iou":
        yield is_one_well_formed_box(reply.text)
    if task.tools or task.metric == "tool_call":
        yield not any(mark in reply.text for mark in _CALL_MARKS)
        yield all(call.name and isinstance(call.arguments, dict) for call in reply.calls)
    if task.metric == "tool_call":
        yield bool(reply.calls)
    yield has_answer
