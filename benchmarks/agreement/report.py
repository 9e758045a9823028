"""What was found, as Markdown, and where it goes in a document."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.agreement.verdict import MEANS, Answer, Difference, Verdict, answer

_VERDICTS: dict[Answer, str] = {
    "agree": "The clients agree.",
    "differ": "The clients DIFFER.",
    "undecided": "UNDECIDED: runs of the same client differ too much here.",
}
_MANY = 1000  # pairs that nobody makes
_BEGIN, _END = "<!-- agreement, ", "<!-- end of agreement, "

Found = Sequence[tuple[str, Sequence[Verdict]]]


def text_of(found: Found, head: str) -> str:
    """Everything about each server, under `head`."""
    text, every = [head], [each for _, verdicts in found for each in verdicts]
    for name, verdicts in found:
        text += [f"Against {name}:", means_table(verdicts), floor_table(verdicts)]
        if verdicts[0].on_wire():
            text.append(wire_table(verdicts))
    return "\n\n".join([*text, "\n".join(f"* {line}" for line in conclusions(every))]) + "\n"


def means_table(verdicts: Sequence[Verdict]) -> str:
    """A row for each load, a column for each figure."""
    lines = [f"| load | pairs | tokens in + out | {' | '.join(MEANS.values())} |", "|---" * 7 + "|"]
    for each in verdicts:
        run = each.glimt[0]
        tokens = f"{run['total_input_tokens']:,} + {run['total_output_tokens']:,}"
        cells = " | ".join(map(str, each.means().values()))
        lines.append(f"| {each.name} | {len(each.glimt)} | {tokens} | {cells} |")
    return "\n".join(lines)


def floor_table(verdicts: Sequence[Verdict]) -> str:
    """By how much a client differs from itself, and what may be between the two."""
    heads = " | ".join(f"{name}, itself of allowed" for name in MEANS.values())
    lines = [f"| load | {heads} |", "|---" * (1 + len(MEANS)) + "|"]
    for each in verdicts:
        cells = [f"± {one.floor:.2f} of {one.allowed:.2f}" for one in each.means().values()]
        lines.append(f"| {each.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def wire_table(verdicts: Sequence[Verdict]) -> str:
    """The server's part of TTFT and E2EL, and the clients' part of each figure."""
    shown = ("mean_ttft_ms", "mean_e2el_ms")
    heads = [f"{MEANS[key]} on the wire" for key in shown]
    heads += [f"{MEANS[key]}, added" for key in verdicts[0].added()]
    lines = [f"| load | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for each in verdicts:
        on_wire = each.on_wire()
        parts = [on_wire[key].plain for key in shown] + [str(one) for one in each.added().values()]
        lines.append(f"| {each.name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def conclusions(verdicts: Sequence[Verdict]) -> list[str]:
    """The verdict, and a sentence on every figure that stands in the way of agreement."""
    unequal = [f"{each.name}: {what}" for each in verdicts for what in each.unequal()]
    lines = [_VERDICTS[answer(verdicts)]]
    lines += [f"DIFFERS: {line}" for line in unequal] or ["Token totals are equal in all runs."]
    means = [(each.name, MEANS[key], one) for each in verdicts for key, one in each.means().items()]
    lines += [_objection(*each) for each in means if each[2].answer != "agree"]
    lines.append(f"Means within 2 % + 1 ms: {_shares([one for *_, one in means])}.")
    if added := [one for each in verdicts for one in each.added().values()]:
        lines.append(f"What the clients add, within the same: {_shares(added)}.")
    return lines


def record(file: Path, place: str, text: str) -> None:
    """Put it between the marks of a place in a document, or after those of the last place if this
    one is new. Raises SystemExit if there are none at all."""
    whole, (begin, end) = file.read_text(), marks(place)
    before, is_there, rest = whole.partition(begin)
    after = rest.partition(end)[2]
    if not is_there:
        last = [line for line in whole.splitlines() if line.startswith(_END)]
        if not last:
            raise SystemExit(f"{file} has no line that begins with {_END}")
        before, last_end, after = whole.rpartition(last[-1])
        before += f"{last_end}\n\n"
    file.write_text(f"{before}{begin}\n\n{text}{end}{after}")


def marks(place: str) -> tuple[str, str]:
    """The lines before and after the tables of a place."""
    return f"{_BEGIN}{place}: made by python -m benchmarks.agreement -->", f"{_END}{place} -->"


def _objection(load: str, figure: str, one: Difference) -> str:
    about = f"{load}: {figure} {one.plain}, allowed {one.allowed:.2f}"
    if one.answer == "differ":
        return f"DIFFERS: {about}"
    wanted = one.pairs_wanted
    more = f"; if they agree, about {math.ceil(wanted)} pairs show it" if wanted < _MANY else ""
    return f"UNDECIDED: {about}, a client against itself ± {one.floor:.2f}{more}"


def _shares(found: Sequence[Difference]) -> str:
    count = {name: sum(one.answer == name for one in found) for name in _VERDICTS}
    rest = ", ".join(f"{number} {name}" for name, number in count.items() if number)
    return f"of {len(found)}, {rest}"
