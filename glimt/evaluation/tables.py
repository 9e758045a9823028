"""Results as text for a terminal."""

from collections.abc import Iterator

from glimt.evaluation.results import Share, Side, SkillResult, Summary

_MAX_WIDTH = 32


def summary_table(side: Side) -> str:
    """Accuracy by skill, then form, failures and speed."""
    return "\n".join(_lines(side.summary))


def percent(share: float) -> str:
    """0.957 -> 95.7 %"""
    return f"{100 * share:.1f} %"


def interval(share: Share) -> str:
    """The interval's ends in per cent."""
    return f"{100 * share.low:.1f} – {100 * share.high:.1f} %"


def _lines(summary: Summary) -> Iterator[str]:
    names = [result.skill for result in (*summary.skills, summary.overall)]
    width = min(_MAX_WIDTH, max(map(len, [*names, "skill"])))
    yield f"{'skill':<{width}}" + "      n  right  accuracy    95 % interval  score"
    for result in summary.skills:
        yield _row(result, width)
    yield _row(summary.overall, width)
    if summary.in_format.n:
        yield _share_row("format", summary.in_format, width)
    yield ""
    if summary.failures:
        yield "failed requests, counted as wrong: " + ", ".join(
            f"{name} {count}" for name, count in summary.failures.items()
        )
    if cut := summary.finish_reasons.get("length"):
        yield f"answers cut off by --max-tokens: {cut}"
    yield (
        f"{summary.prompt_tokens:,} prompt tokens, {summary.completion_tokens:,} answer tokens "
        f"in {summary.seconds:.1f} s: {summary.tokens_per_s:,.1f} answer tokens/s"
    )


def _row(result: SkillResult, width: int) -> str:
    failed = f"  ({result.num_failed} failed)" if result.num_failed else ""
    row = _share_row(result.skill, result.accuracy, width)
    return f"{row}  {result.mean_score:.3f}{failed}"


def _share_row(name: str, share: Share, width: int) -> str:
    name = name if len(name) <= width else f"{name[: width - 1]}…"
    return (
        f"{name:<{width}}  {share.n:>5}  {share.num:>5}  {percent(share.share):>8}  "
        f"{interval(share):>15}"
    )
