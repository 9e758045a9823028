"""`glimt quantize SRC DST`, from the arguments to the last line on the terminal.

Refuses first, in order of cost: DST before a download, all of SRC's headers before a byte is
written, the disk before an hour of work.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from glimt.checkpoint import checkpoint_file, read_json
from glimt.errors import BadCheckpoint, BadSettings, StartupError
from glimt.hub import locate
from glimt.models.config import ModelConfig
from glimt.models.config_json import read_config
from glimt.models.shards import read_headers
from glimt.models.weight_plan import inspect
from glimt.quantization.companions import (
    CONFIG,
    check_companions,
    companion_files,
    write_companions,
)
from glimt.quantization.layout import ShardPlan, plan_shards
from glimt.quantization.verify import Report, verify
from glimt.quantization.workspace import (
    Source,
    Workspace,
    partial_of,
    was_interrupted_at_the_very_end,
)
from glimt.quantization.write import write_shard

_EXIT_OK, _EXIT_NOT_VERIFIED, _EXIT_INTERRUPTED = 0, 1, 130
_ROOM_BYTES = 64 << 20  # of the disk, for what file systems need themselves
_MAX_LISTED = 10

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The arguments of `glimt quantize`."""

    source: str
    target: str
    overwrite: bool = False
    verify: bool = False
    verify_only: bool = False
    json: str | None = None
    revision: str | None = None
    download_dir: str | None = None
    progress: bool = True


@dataclass(frozen=True)
class _Work:
    """Everything that is known before a weight is read."""

    source: Path
    target: Path
    config: ModelConfig
    shards: tuple[ShardPlan, ...]
    fingerprint: Source


def quantize(wishes: Wishes, say: Say) -> int:
    """Do it; the exit status. Raises StartupError for whatever is refused."""
    started = time.monotonic()
    target = _target(wishes)
    if not wishes.verify_only and was_interrupted_at_the_very_end(target):
        say(f"{target} was finished by an earlier run")
        return _EXIT_OK
    _check_target(wishes, target)
    work = _plan(wishes, target)
    if wishes.verify_only:
        status = _verify(wishes, work, target, say)[0]
        return _check_companions(work, target, say) or status
    read, made = (sum(sizes) for sizes in zip(*_sizes(work.shards), strict=True))
    say(f"glimt quantize: {len(work.shards)} files, {_size(read)} -> {_size(made)}")
    for name in companion_files(work.source)[1]:
        say(f"  note: {name} is not copied (only .json, .jinja, .md and .txt files are)")
    try:
        workspace = Workspace.enter(target, work.fingerprint, overwrite=wishes.overwrite)
    except OSError as error:
        raise BadSettings(f"{partial_of(target)} cannot be made: {error.strerror}") from error
    try:
        status = _run(wishes, work, workspace, say)
    except KeyboardInterrupt:
        say(f"stopped; the same command goes on after {len(workspace.finished)} finished files")
        return _EXIT_INTERRUPTED
    except OSError as error:
        raise StartupError(
            f"{error.filename or workspace.folder}: {error.strerror}; once that is mended, the "
            f"same command goes on after {len(workspace.finished)} finished files"
        ) from error
    finally:
        workspace.close()
    if status == _EXIT_OK:
        say(f"done in {time.monotonic() - started:.0f} s: {target}")
    return status


def _run(wishes: Wishes, work: _Work, workspace: Workspace, say: Say) -> int:
    _check_target(wishes, work.target)  # again, now that nobody else can make it
    workspace.keep_finished(work.shards)
    todo = [shard for shard in work.shards if shard.name not in workspace.finished]
    if workspace.finished:
        say(f"  {len(workspace.finished)} files are finished by an earlier run")
    _check_disk(work, workspace.folder, todo)
    done = [shard for shard in work.shards if shard.name in workspace.finished]
    with _bar("quantise", work.shards, wishes, initial=_read_bytes(done)) as bar:
        for shard in todo:
            _write_one(shard, work, workspace, bar)
    if wishes.verify:
        status, bad_files = _verify(wishes, work, workspace.folder, say)
        if status != _EXIT_OK:
            workspace.redo(bad_files)
            say(f"{work.target} was not made; the same command makes those files again")
            return status
    write_companions(work.source, workspace.folder, work.config, work.shards)
    if wishes.verify and _check_companions(work, workspace.folder, say) != _EXIT_OK:
        say(f"{work.target} was not made; the same command writes those files again")
        return _EXIT_NOT_VERIFIED
    workspace.publish()
    return _EXIT_OK


def _write_one(shard: ShardPlan, work: _Work, workspace: Workspace, bar: "tqdm[None]") -> None:
    workspace.add(shard, lambda path: write_shard(shard, path, bar.update))
    index = work.shards.index(shard)
    if _identity(shard.source) != work.fingerprint[index]:
        workspace.redo([shard.name])
        raise BadCheckpoint(f"{shard.source} was changed while it was read; begin anew")


def _verify(wishes: Wishes, work: _Work, folder: Path, say: Say) -> tuple[int, tuple[str, ...]]:
    with _bar("verify", work.shards, wishes) as bar:
        report = verify(work.shards, folder, bar.update)
    if wishes.json is not None:
        Path(wishes.json).write_text(report.as_json(str(work.source), str(work.target)), "utf-8")
    _tell(report, say)
    return (_EXIT_NOT_VERIFIED if report.problems else _EXIT_OK), report.bad_files


def _check_companions(work: _Work, folder: Path, say: Say) -> int:
    report = check_companions(work.source, folder, work.config, work.shards)
    for note in report.notes:
        say(f"  note: {note}")
    for problem in report.problems:
        say(f"  WRONG: {problem}")
    return _EXIT_NOT_VERIFIED if report.problems else _EXIT_OK


def _tell(report: Report, say: Say) -> None:
    say(
        f"{'NOT verified' if report.problems else 'verified'}: {len(report.modules)} modules in "
        f"FP8, relative RMS error {report.relative_rms_error:.3%} over all; "
        f"{report.num_unchanged} tensors unchanged"
    )
    if report.modules:
        say("  rel. RMS    max error   max weight  module (worst first)")
    for module in report.modules[:_MAX_LISTED]:
        say(
            f"  {module.relative_rms_error:8.3%} {module.max_error:12.3e} "
            f"{module.max_weight:12.3e}  {module.module}"
        )
    for problem in report.problems[:_MAX_LISTED]:
        say(f"  WRONG: {problem}")
    if (more := len(report.problems) - _MAX_LISTED) > 0:
        say(f"  and {more} more")


# ------------------------------------------------------------------------------------- refusals


def _target(wishes: Wishes) -> Path:
    target = Path(os.path.abspath(Path(wishes.target).expanduser()))
    if not wishes.target or not target.name:
        raise BadSettings(f"{wishes.target!r} cannot be the folder of a new checkpoint")
    return target


def _check_target(wishes: Wishes, target: Path) -> None:
    problems = []
    source = Path(wishes.source).expanduser()
    if source.is_dir():
        one, other = source.resolve(), target.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            problems.append("SRC and DST must be folders beside each other")
    exists = target.exists() or target.is_symlink()
    if wishes.verify_only:
        if not target.is_dir():
            problems.append(f"--verify-only: there is no folder {target}")
        if wishes.overwrite or wishes.verify:
            problems.append("--verify-only goes without --overwrite and --verify")
    elif exists and not wishes.overwrite:
        problems.append(f"{target} exists; --overwrite replaces it, --verify-only checks it")
    elif exists and not _is_checkpoint(target):
        problems.append(f"{target} is not the folder of a checkpoint; --overwrite leaves it alone")
    if wishes.json is not None:
        if not (wishes.verify or wishes.verify_only):
            problems.append("--json is where --verify or --verify-only write their report")
        folder = Path(wishes.json).absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(wishes.json).is_dir():
            problems.append(f"--json {wishes.json} cannot be written")
    if problems:
        raise BadSettings("nothing was done:", problems)


def _is_checkpoint(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    return (folder / CONFIG).is_file() or not any(folder.iterdir())


def _plan(wishes: Wishes, target: Path) -> _Work:
    source = locate(wishes.source, revision=wishes.revision, download_dir=wishes.download_dir)
    config = read_config(read_json(checkpoint_file(source, CONFIG)))
    plan = inspect(source, config, quantization="fp8")
    stored_in_fp8 = plan.fp8 - plan.quantized_here
    if stored_in_fp8:
        what = "already" if not plan.quantized_here else "partly"
        raise BadCheckpoint(
            f"{source} is {what} in FP8 ({len(stored_in_fp8)} of {len(plan.fp8)} linears): "
            "serve it as it is, or quantise the BF16 checkpoint that it was made from"
        )
    companion_files(source)  # raises for links out of the folder
    shards = plan_shards(plan, read_headers(source))
    fingerprint = [_identity(shard.source) for shard in shards]
    return _Work(source, target, config, shards, fingerprint)


def _identity(file: Path) -> list[str | int]:
    """What changes when a weight file changes: its name, size, time and header."""
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        length = stream.read(8)
        header = stream.read(int.from_bytes(length, "little"))
    digest = hashlib.sha256(length + header).hexdigest()
    return [file.name, status.st_size, status.st_mtime_ns, digest]


def _check_disk(work: _Work, folder: Path, todo: Sequence[ShardPlan]) -> None:
    companions = sum(path.stat().st_size for path in companion_files(work.source)[0])
    needed = sum(shard.num_bytes for shard in todo) + companions + _ROOM_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StartupError(
            f"{_size(needed)} more are needed on the disk of {partial_of(work.target)}, and "
            f"{_size(free)} are free: {_size(needed - free)} too few"
        )


# --------------------------------------------------------------------------------------- numbers


def _sizes(shards: Sequence[ShardPlan]) -> list[tuple[int, int]]:
    return [(shard.source_bytes, shard.num_bytes) for shard in shards]


def _read_bytes(shards: Sequence[ShardPlan]) -> int:
    return sum(shard.source_bytes for shard in shards)


def _bar(what: str, shards: Sequence[ShardPlan], wishes: Wishes, initial: int = 0) -> "tqdm[None]":
    return tqdm(
        total=_read_bytes(shards),
        initial=initial,
        desc=what,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,  # a log gets a line now and then
        disable=not wishes.progress,
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
