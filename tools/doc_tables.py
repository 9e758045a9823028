"""The tables of docs/serving.md and docs/benchmarking.md, made from the code that decides."""

import ast
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from cyclopts import Parameter

from glimt import config
from glimt.api import body
from glimt.api.error_table import ERRORS
from glimt.api.routes import ROUTES
from glimt.api.state import HttpLimits
from glimt.bench import options as bench
from glimt.frontend.fetch import FetchPolicy
from glimt.metrics import Metrics
from glimt.planning import wishes as planning
from glimt.wire import EngineInfo, EngineStats, ExpertStats, MediaLimits

GROUPS = (
    config.ModelSettings,
    config.CacheSettings,
    config.MediaSettings,
    config.ParallelSettings,
    config.ServerSettings,
)
BENCH_GROUPS = (
    bench.TargetOptions,
    bench.LoadOptions,
    bench.DataOptions,
    bench.SamplingOptions,
    bench.WatchOptions,
    bench.FigureOptions,
    bench.OutputOptions,
    bench.SearchOptions,
)
INFO = EngineInfo(
    max_model_len=1,
    vocab_size=1,
    num_pages=1,
    page_size=1,
    max_num_batched_tokens=1,
    max_num_seqs=1,
    max_image_tokens=1,
)


def flags() -> str:
    """Every flag of `glimt serve` by group, with its default and meaning."""
    return _groups(Path(config.__file__), GROUPS)


def bench_options() -> str:
    """Every option of `glimt bench serve` by group, with its default and meaning."""
    return _groups(Path(bench.__file__), BENCH_GROUPS)


def plan_options() -> str:
    """Every option of `glimt plan`, with its default and meaning."""
    return _groups(Path(planning.__file__), [planning.PlanWishes])


def _groups(file: Path, groups: Iterable[type]) -> str:
    source = ast.parse(file.read_text())
    classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
    parts = []
    for group in groups:
        meanings = _docstrings(classes[group.__name__])
        hints = typing.get_type_hints(group, include_extras=True)
        rows = [
            (
                _flag(name, hints[name]),
                shown(getattr(group(), name)),
                _kind(hints[name]),
                meanings[name],
            )
            for name in group.__dataclass_fields__
        ]
        title = (group.__doc__ or "").rstrip(".")
        parts.append(f"### {title}\n\n" + table(("flag", "default", "value", "meaning"), rows))
    return "\n\n".join(parts)


def routes() -> str:
    """Every route."""
    rows = [
        (f"`{' '.join(route.methods)} {route.path}`", route.access.value, route.summary)
        for route in ROUTES
        if not route.path.endswith("/") or route.path == "/"
    ]
    return table(("route", "for whom", "what it gives"), rows)


def metrics() -> str:
    """Every series at /metrics."""
    metrics = Metrics(model_name="m")
    metrics.add_engine(0, INFO)
    one = ExpertStats((0,), (0,), {1: 1.0}, {1: 1.0})
    metrics.observe_engine(0, EngineStats(experts=one))
    rows = []
    for family in sorted(metrics.registry.collect(), key=lambda family: family.name):
        is_counter = family.type == "counter"
        name = f"{family.name}_total" if is_counter else family.name
        labels = {label for sample in family.samples for label in sample.labels}
        own = sorted(labels - {"model_name", "engine", "le"})
        shown = "" if family.name.endswith("_info") else ", ".join(own)
        rows.append((f"`{name}`", family.type, shown, family.documentation))
    return table(("name", "type", "own labels", "what it counts"), rows)


def limits() -> str:
    """What is bounded, and by what."""
    http, media, fetch = HttpLimits(), MediaLimits(), FetchPolicy()
    rows = (
        ("body of a request", _bytes(http.max_body_bytes), "413"),
        ("the same without its `data:` addresses", _bytes(body.MAX_TEXT_BYTES), "400"),
        ("time for the body to arrive", f"{http.body_timeout_s:g} s", "408"),
        ("nesting of the body", f"{body.MAX_DEPTH} levels", "400"),
        ("headers", f"{http.max_headers}, {_bytes(http.max_headers_bytes)} together", "431"),
        ("path and query", _bytes(http.max_path_bytes), "414"),
        ("a reader that takes nothing", f"{http.max_stalled_s:g} s", "the connection is closed"),
        ("one fetch", f"{fetch.timeout_s:g} s", "400"),
        ("redirects of a fetch", str(fetch.max_redirects), "400"),
        ("ports of a fetch", " and ".join(map(str, fetch.allowed_ports)), "400"),
        ("an encoded image", _bytes(media.max_image_bytes), "400"),
        ("an encoded video", _bytes(media.max_video_bytes), "400"),
        ("pixels of an image (`--max-image-pixels`)", f"{media.max_image_pixels:,}", "400"),
        ("pixels of a video frame", f"{media.max_frame_pixels:,}", "400"),
        ("frames taken from a video", f"{media.max_video_frames:,}", "fewer are taken"),
        ("length of a video", f"{media.max_video_seconds:,g} s", "400"),
        ("decoding one medium", f"{media.decode_timeout_s:g} s", "400"),
    )
    return table(("what", "limit", "beyond it"), rows)


def errors() -> str:
    """Every error of an HTTP answer, by status."""
    rows = [
        (
            f"`{row.code}`",
            str(row.status),
            f"`{row.type}`",
            f"`{row.anthropic}`",
            row.when,
            row.cure,
        )
        for row in ERRORS.values()
    ]
    head = ("code", "status", "OpenAI's type", "Anthropic's", "when", "what to do")
    return table(head, sorted(rows, key=lambda row: row[1]))


ERROR_TABLES = {"errors": errors}

TABLES = {
    "flags": flags,
    "routes": routes,
    "metrics": metrics,
    "limits": limits,
}


def _docstrings(node: ast.ClassDef) -> dict[str, str]:
    """The text under each field of a class."""
    found = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr)
            assert isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _flag(name: str, hint: Any) -> str:
    flag = f"`--{name.replace('_', '-')}`"
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Parameter) and extra.alias:
            flag += ", " + ", ".join(f"`{alias}`" for alias in extra.alias)
    return flag


def _kind(hint: Any) -> str:
    """A type in a reader's words, with its bounds."""
    if hint is bool:
        return "true or false"
    if hint in (int, float, str):
        return {int: "integer", float: "number", str: "text"}[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        inner = _kind(arguments[0])
        for meta in hint.__metadata__:
            if isinstance(meta, msgspec.Meta):
                inner = _bounded(inner, meta)
        return inner
    if origin is typing.Literal:
        return " · ".join(f"`{each}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(each) for each in arguments if each is not type(None))
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    return "object"


def _bounded(kind: str, meta: msgspec.Meta) -> str:
    texts = [
        f"{sign} {value:,}" if isinstance(value, float) or abs(value) < 2**31 - 1 else ""
        for sign, value in ((">", meta.gt), ("≥", meta.ge), ("<", meta.lt), ("≤", meta.le))
        if value is not None
    ]
    if meta.max_length is not None:
        unit = " characters" if kind == "text" else ""
        texts.append(f"(at most {meta.max_length:,}{unit})")
    return " ".join((kind, ", ".join(filter(None, texts)))).strip()


def shown(value: Any) -> str:
    """A default, in a reader's words."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value:,}`" if isinstance(value, int) and value >= 10_000 else f"`{value}`"


def _bytes(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count // 2**10} KiB"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
