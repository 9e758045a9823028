"""A plan as text for a terminal, and as JSON."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glimt.planning.constants import Constants
from glimt.planning.load import Under
from glimt.planning.plan import Estimate, Plan, first_token_at, named, step_at
from glimt.planning.serve_line import TOKEN, TOKEN_LINE

GIB = 2**30
LARGEST_MACHINE = 8  # GPUs of the usual ones


def print_plan(
    plan: Plan,
    model: str,
    lines: Sequence[tuple[str, str]],
    by_ray: Sequence[tuple[str, str]],
    refused: Sequence[str],
) -> None:
    """The whole report on the standard output; in colour where that is a terminal. `lines`: (where
    it is typed, line); `by_ray`: (what it does, line)."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(model)}[/bold] on {_cluster(plan)}; {_request(plan)}")
    table_console = Console(highlight=False, width=None if console.is_terminal else 180)
    for table in _tables(plan, table_console.width):
        table_console.print(table)
    for sentence in notes(plan):
        console.print(f"  {escape(sentence)}")
    console.print()
    for reason in plan.reasons:
        console.print(f"[bold]-> {escape(reason)}[/bold]")
    console.print()
    if plan.question.cluster.nodes > 1:
        console.print("on all machines, NODE0 and so on being their addresses:")
        console.print(TOKEN_LINE, style="green")
    for where, line in lines:
        if where:
            console.print(f"{where}:")
        console.print(escape(line), style="green")
    for what, line in by_ray:
        console.print(f"or {what}:")
        console.print(escape(line), style="green")
    if refused:
        console.print("\nnot in this version yet; it would say at start:")
        for problem in refused:
            console.print(f"  - {escape(problem)}")


def print_constants(constants: Constants, gpu: str) -> None:
    """What the estimates rest on."""
    table = Table(title="constants", box=None, header_style="bold")
    for column in ("name", "value", "source", "note"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for name, value, source, note in constant_rows(constants, gpu):
        table.add_row(name, value, source, escape(note))
    Console(highlight=False, width=160).print(table)


def constant_rows(constants: Constants, gpu: str) -> Iterator[tuple[str, str, str, str]]:
    """(name, value, source, note) of what a plan for `gpu` uses."""
    for name, (source, note) in constants.origins.items():
        section, _, rest = name.partition(".")
        if section == "gpu" and not rest.startswith(f"{gpu}."):
            continue
        yield name, _value(constants, section, rest), source, note


def as_json(
    plan: Plan,
    model: str,
    lines: Sequence[str],
    by_ray: Sequence[tuple[str, str]],
    refused: Sequence[str],
) -> dict[str, Any]:
    """Everything, in bytes, seconds and tokens; what is endless is null."""
    q = plan.question
    return {
        "model": model,
        "gpu": q.gpu.name,
        "nodes": q.cluster.nodes,
        "gpus_per_node": q.cluster.gpus_per_node,
        "weights": "fp8" if q.fp8 else "16 bit",
        "kv_cache": "fp8" if q.fp8_kv else "16 bit",
        "workload": {**asdict(q.work), "rate": q.rate},
        "layouts": [_estimate_json(e, q.cluster.num_gpus) for e in plan.estimates],
        "recommended": plan.best.layout.name,
        "reasons": list(plan.reasons),
        "nodes_needed": plan.nodes_needed,
        "notes": list(notes(plan)),
        "environment": {"GLIMT_MASTER_TOKEN": TOKEN} if q.cluster.nodes > 1 else {},
        "commands": list(lines),
        "ray_commands": [line for _, line in by_ray],
        "refused_by_this_version": list(refused),
        "constants": [
            {"name": name, "value": value, "source": source, "note": note}
            for name, value, source, note in constant_rows(q.constants, q.gpu.name)
        ],
    }


def _estimate_json(e: Estimate, num_gpus: int) -> dict[str, Any]:
    layout, fit = e.layout, e.fit
    return {
        "name": layout.name,
        "tensor_parallel_size": layout.tp,
        "data_parallel_size": layout.dp,
        "idle_gpus": num_gpus - layout.num_gpus,
        "expert_parallel": layout.spread,
        "expert_parallel_size": layout.ep,
        "mm_encoder_tp_mode": "data" if layout.vision_data else "weights",
        "fits": fit.fits,
        "weight_bytes_per_gpu": fit.weight_bytes,
        "kv_tokens": fit.all_kv_tokens,
        "kv_tokens_per_copy": fit.kv_tokens,
        "longest_request": fit.longest,
        "requests_at_once": fit.all_requests,
        "alone": {"ttft_s": e.ttft_s, "tpot_s": e.tpot_s},
        "floor": {"ttft_s": e.floor_ttft_s, "tpot_s": e.floor_tpot_s},
        "highest_rate": e.highest_rate,
        "at_highest_rate": _under_json(e.full),
        "at_rate": _under_json(e.loaded),
    }


def _under_json(under: Under | None) -> dict[str, Any] | None:
    if under is None:
        return None
    return {
        name: None if isinstance(value, float) and math.isinf(value) else value
        for name, value in asdict(under).items()
    }


# ------------------------------------------------------------------------------------------ table


_COLUMNS_EACH = 4  # of memory, of speed, and under the rate


def _tables(plan: Plan, width: int) -> list[Table]:
    """One table, or, on a narrow terminal, one for each kind of column."""
    whole = _table(plan, slice(None))
    if Console(width=1000).measure(whole).maximum <= width:
        return [whole]
    kinds = 2 if plan.question.rate is None else 3
    return [
        _table(plan, slice(_COLUMNS_EACH * kind, _COLUMNS_EACH * (kind + 1)))
        for kind in range(kinds)
    ]


def _table(plan: Plan, columns: slice) -> Table:
    """Layouts by `columns` of all that is known of them."""
    table = Table(header_style="bold")
    table.add_column("layout", no_wrap=True)
    loaded = plan.question.rate is not None
    headings = [
        "weights\nGiB/GPU",
        "KV tokens\n(all copies)",
        "longest\nrequest",
        "requests\nat once",
        "alone: TTFT\nms (floor)",
        "TPOT\nms (floor)",
        "most\nrequests/s",
        "tokens/s\nthere",
    ]
    if loaded:
        headings += [
            f"at {plan.question.rate:g}/s: TTFT\nms",
            "TPOT\nms",
            "running",
            "prompts\nbusy",
        ]
    for heading in headings[columns]:
        table.add_column(heading, justify="right", no_wrap=True)
    for e in plan.estimates:
        cells = _row(e, loaded=loaded)[columns]
        name = named(plan.question, e.layout)
        table.add_row(name, *cells, style="bold green" if e is plan.best else None)
    return table


def _row(e: Estimate, *, loaded: bool) -> list[str]:
    fit = e.fit
    cells = [f"{fit.weight_bytes / GIB:.1f}"]
    if not fit.fits:
        cells += [f"lacks {fit.short_bytes / GIB:.1f} GiB"]
        return [*cells, *["-"] * (10 if loaded else 6)]
    cells += [
        f"{fit.all_kv_tokens:,}",
        f"{fit.longest:,}",
        f"{fit.all_requests:,}",
        f"{1e3 * e.ttft_s:.0f} ({1e3 * e.floor_ttft_s:.0f})",
        f"{1e3 * e.tpot_s:.2f} ({1e3 * e.floor_tpot_s:.2f})",
        _short(e.highest_rate),
        "-" if e.full is None else f"{e.full.output_rate:,.0f}",
    ]
    if loaded:
        cells += _loaded(e.loaded)
    return cells


def _loaded(under: Under | None) -> list[str]:
    if under is None or not under.carried:
        return ["too much", "-", "-", "-"]
    return [
        f"{1e3 * under.ttft_s:.0f}",
        f"{1e3 * under.tpot_s:.1f}",
        f"{under.running:.0f}",
        f"{100 * under.busy:.0f} %",
    ]


def notes(plan: Plan) -> Iterator[str]:
    """What to know about these numbers."""
    q = plan.question
    yield (
        "times are estimates, floors what the device allows; routing is taken as even; --explain "
        "lists the constants"
    )
    if any(e.layout.sharing > 1 for e in plan.estimates):
        yield (
            "EP over copies (-dp with -ep): those of a machine, or all, share experts and step "
            f"together; their exchange is taken from {q.constants.origins['exchange'][1]}"
        )
    for m in plan.measured:
        steps = ", ".join(
            f"{1e3 * seconds:.3g} ms at {batch} (estimate {1e3 * step_at(q, m, batch):.1f})"
            for batch, seconds in m.steps
        )
        image, tokens, seconds = m.first_token
        yield (
            f"measured: Glimt {m.version}, TP{m.tensor_parallel_size} on {q.gpu.name}: a step "
            f"took {steps}; the first token after {tokens:,} tokens, {image:,} of an image, "
            f"{1e3 * seconds:.0f} ms without the host (estimate {1e3 * first_token_at(q, m):.0f}); "
            f"{m.where}"
        )
    if q.cluster.gpus_per_node > LARGEST_MACHINE:
        yield (
            f"--gpus {q.cluster.gpus_per_node} is one machine whose GPUs all have fast links to "
            "each other; for several machines of 8, write --gpus 8 --nodes N"
        )
    if plan.nodes_needed is not None:
        count = plan.nodes_needed
        yield (
            f"{count} such machines would carry the rate"
            if count
            else "not even 64 such machines would carry the rate"
        )


def _cluster(plan: Plan) -> str:
    q = plan.question
    machines = f"{q.cluster.nodes} machines of " if q.cluster.nodes > 1 else ""
    return f"{machines}{q.cluster.gpus_per_node} x {escape(q.gpu.title)}"


def _request(plan: Plan) -> str:
    q, work = plan.question, plan.question.work
    some = "1 image" if work.num_images == 1 else f"{work.num_images} images"
    images = f" + {some} of {work.image_tokens:,}" if work.num_images else ""
    rate = f", {q.rate:g} requests/s" if q.rate is not None else ""
    return (
        f"{'FP8' if q.fp8 else '16-bit'} weights, {'FP8' if q.fp8_kv else '16-bit'} KV; "
        f"{work.input_tokens:,} tokens of text{images}, {work.output_tokens:,} out{rate}"
    )


def _short(value: float) -> str:
    """Three digits: 0.0123, 4.57, 215."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _value(constants: Constants, section: str, rest: str) -> str:
    if section in ("all_reduce", "exchange"):
        sums = constants.collectives
        points = sums.all_reduce[int(rest)] if rest else sums.exchange
        return ", ".join(f"{size / 1024:g}K {1e6 * seconds:.3g} us" for size, seconds in points)
    if section == "gpu":
        name, _, field = rest.partition(".")
        return f"{getattr(constants.gpus[name], field):.4g}"
    return f"{getattr(getattr(constants, section), rest):.4g}"
