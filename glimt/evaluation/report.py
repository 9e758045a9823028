"""The report: one HTML file with pictures, questions, answers, mistakes; it loads nothing."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from tqdm import tqdm

from glimt.evaluation.boxes import SCALE, parse_box
from glimt.evaluation.comparison import Comparison, Results, said
from glimt.evaluation.pictures import Thumbnails, rectangle
from glimt.evaluation.questions import transcript_of
from glimt.evaluation.replies import Json
from glimt.evaluation.results import Record, Side
from glimt.evaluation.tables import interval, likeness_lines, percent
from glimt.evaluation.tasks import MediaFiles, Task, media_files

_PICTURE_BYTES = 3 * 2**20  # for all pictures, encoded
_COLOURS = ("a", "b")
_LABELS = ("A", "B")


def render_report(results: Results, tasks: Sequence[Task], files: MediaFiles) -> str:
    """The page. Mistakes get their pictures first, should there be too many for all."""
    cards = _cards(results, tasks)
    num_left_out = _add_pictures(cards, {task.id: task for task in tasks}, files)
    template = Path(__file__).with_name("report.html.jinja").read_text("utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    file = results.tasks_file
    source = f"{file['name']}, SHA-256 {file['sha256'][:12]}"
    return environment.from_string(template).render(
        title=" against ".join(side.model for side in results.sides),
        subtitle=f"{source} · {results.created} · glimt {results.versions['glimt']}",
        figures=list(_figures(results)),
        sides=[_side(side, index, len(results.sides)) for index, side in enumerate(results.sides)],
        comparison=_comparison(results.comparison),
        skills=[row.skill for row in results.sides[0].summary.skills],
        cards=cards,
        num_left_out=num_left_out,
        has_boxes=any(card["boxes"] for card in cards),
        scale=SCALE,
        percent=percent,
        interval=interval,
    )


def _side(side: Side, index: int, num_sides: int) -> Json:
    return {
        "label": f"{_LABELS[index]}: {side.model}" if num_sides > 1 else side.model,
        "how": " · ".join(_how(side.facts)),
        "colour": _COLOURS[index],
        "is_complete": side.is_complete,
        "overall": side.summary.overall,
        "rows": [*side.summary.skills, side.summary.overall],
    }


def _how(facts: Json) -> Iterator[str]:
    """What computed, in what: of a server we know nothing but where it is."""
    for name, field in (
        ("server", "base_url"),
        ("weights", "weights"),
        ("KV cache", "kv_cache_dtype"),
        ("computing in", "dtype"),
        ("on", "device"),
        ("torch", "torch"),
    ):
        if field in facts:
            yield f"{name} {facts[field]}"
    if "refused_fields" in facts:
        yield f"without {', '.join(facts['refused_fields'])}, which it refuses"


def _comparison(comparison: Comparison | None) -> Json | None:
    if comparison is None:
        return None
    return {
        "rows": [*comparison.skills, comparison.overall],
        "lines": list(likeness_lines(comparison)),
    }


def _figures(results: Results) -> Iterator[Json]:
    if results.comparison is not None:
        yield from _differences(results.comparison)
    for index, side in enumerate(results.sides):
        of = f" of {_LABELS[index]}" if len(results.sides) > 1 else ""
        summary = side.summary
        accuracy, form = summary.overall.accuracy, summary.in_format
        yield {
            "name": f"accuracy{of}",
            "value": percent(accuracy.share),
            "note": f"{accuracy.num} of {accuracy.n}, {interval(accuracy)}",
        }
        if form.n:
            yield {
                "name": f"format{of}",
                "value": percent(form.share),
                "note": f"{form.num} of {form.n}",
            }
        yield {
            "name": f"answer tokens/s{of}",
            "value": f"{summary.tokens_per_s:,.0f}",
            "note": f"{summary.completion_tokens:,} tokens in {summary.seconds:.1f} s",
        }
        if summary.failures:
            failures = summary.failures.items()
            yield {
                "name": f"failed requests{of}",
                "value": str(sum(count for _, count in failures)),
                "note": ", ".join(f"{name} {count}" for name, count in failures),
            }


def _differences(comparison: Comparison) -> Iterator[Json]:
    """What one wants to know of two models, first."""
    overall, same, divergence = comparison.overall, comparison.same_answer, comparison.divergence
    low, high = (100 * end for end in overall.interval)
    yield {
        "name": "accuracy, B − A",
        "value": f"{100 * overall.difference:+.1f} %",
        "note": f"{low:+.1f} – {high:+.1f} %, paired",
    }
    yield {
        "name": "same answer",
        "value": percent(same.share),
        "note": f"{same.num} of {same.n}, to the letter",
    }
    if divergence is not None:
        yield {
            "name": "top-1 agreement",
            "value": f"{100 * divergence.same_top.share:.2f} %",
            "note": f"of {divergence.num_places:,} tokens",
        }
        yield {
            "name": "KL(A ‖ B), mean",
            "value": f"{divergence.mean_kl:.1e}",
            "note": "nats per token",
        }
        yield {
            "name": "perplexity, B / A",
            "value": f"{divergence.perplexity_ratio:.4f}",
            "note": f"{divergence.perplexity_b:.4f} / {divergence.perplexity_a:.4f}",
        }


def _cards(results: Results, tasks: Sequence[Task]) -> list[Json]:
    by_task: list[dict[str, Record]] = [
        {record.id: record for record in side.records} for side in results.sides
    ]
    cards = []
    for task in tasks:
        records = [
            (index, by_id[task.id]) for index, by_id in enumerate(by_task) if task.id in by_id
        ]
        if records:
            cards.append(_card(task, records, len(results.sides)))
    return cards


def _card(task: Task, records: Sequence[tuple[int, Record]], num_sides: int) -> Json:
    first = records[0][1]
    return {
        "id": task.id,
        "skill": task.skill,
        "metric": task.metric,
        "thinking": first.thinking,
        "question": first.question,
        "transcript": transcript_of(task),
        "tools": [_shown(tool.get("function", tool)) for tool in task.tools],
        "expected": " · ".join(_shown(answer) for answer in task.answers if answer is not None),
        "differs": len({said(record) for _, record in records}) > 1,
        "is_wrong": any(not record.is_right for _, record in records),
        "answers": [_answer(record, index, num_sides) for index, record in records],
        "boxes": list(_boxes(task, records)),
        "pictures": [],
    }


def _answer(record: Record, index: int, num_sides: int) -> Json:
    calls = [f"{call['name']}({_shown(call['arguments'])})" for call in record.calls]
    notes = [
        f"score {record.score:.2f}" if record.metric in ("iou", "anls") else "",
        "form is wrong" if record.in_format is False else "",
        record.finish_reason,
        f"{record.prompt_tokens} + {record.completion_tokens} tokens",
        f"{record.seconds:.2f} s",
    ]
    return {
        "label": _LABELS[index] if num_sides > 1 else "answer",
        "colour": _COLOURS[index],
        "is_right": record.is_right,
        "text": "\n".join(part for part in (record.answer, *calls) if part),
        "reasoning": record.reasoning,
        "error": record.error,
        "error_message": record.error_message,
        "note": " · ".join(note for note in notes if note),
    }


def _boxes(task: Task, records: Sequence[tuple[int, Record]]) -> Iterator[Json]:
    """Of all right and given boxes where they can be drawn: over the only picture."""
    if task.metric != "iou" or [kind for kind, _ in media_files(task)] != ["image_url"]:
        return
    for answer in task.answers:
        if (box := parse_box(answer)) is not None:
            yield {"kind": "true", **rectangle(box)}
    for index, record in records:
        if (box := parse_box(record.answer)) is not None:
            yield {"kind": _COLOURS[index], **rectangle(box)}


def _add_pictures(cards: Sequence[Json], tasks: dict[str, Task], files: MediaFiles) -> int:
    """Fill `pictures` of the cards, mistakes first; how many cards were left without."""
    thumbnails = Thumbnails(files, _PICTURE_BYTES)
    num_left_out = 0
    mistakes_first = sorted(cards, key=lambda card: not card["is_wrong"])
    for card in tqdm(mistakes_first, desc="report", delay=2.0):  # a short one needs no bar
        urls = list(thumbnails.pictures(tasks[card["id"]]))
        card["pictures"] = [url for url in urls if url is not None]
        num_left_out += thumbnails.is_full and len(card["pictures"]) < len(urls)
    return num_left_out


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
