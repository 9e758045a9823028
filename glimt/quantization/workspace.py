"""DST.partial: where the work grows, survives a kill, and from where it becomes DST at once.

A file gets its name only when it is whole and on the disk, and then a line of the journal. A run
that finds a journal of the same source goes on behind its last line. DST appears by one rename;
the journal goes with it and is removed last, so one that is found in DST means: finished, but
not yet tidied up.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from glimt.errors import BadSettings
from glimt.quantization.layout import ShardPlan

JOURNAL = ".glimt-quantize.jsonl"
_UNFINISHED = ".unfinished"
Source = list[list[Any]]  # per weight file: name, bytes, time of change, hash of the header


class Workspace:
    """One run's folder, locked against others. Open it with `enter`, leave it with `close`."""

    def __init__(self, target: Path, folder: Path, journal: int, source: Source) -> None:
        self.folder = folder
        self.finished: set[str] = set()
        self._target = target
        self._journal = journal
        self._source = source
        self._replaces = False

    @classmethod
    def enter(cls, target: Path, source: Source, *, overwrite: bool) -> "Workspace":
        """Begin at `target`.partial, or go on there.

        Raises BadSettings if the folder is not ours, another run holds it, or it was begun from
        another source (unless `overwrite`, which begins anew).
        """
        folder = partial_of(target)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise BadSettings(f"{folder} is in the way; move it elsewhere")
        if folder.exists() and not (folder / JOURNAL).exists() and any(folder.iterdir()):
            raise BadSettings(f"{folder} was not made by glimt quantize; move it elsewhere")
        folder.mkdir(parents=True, exist_ok=True)
        journal = _lock(folder / JOURNAL)
        workspace = cls(target, folder, journal, source)
        try:
            workspace._read_journal(overwrite=overwrite)
        except BaseException:
            workspace.close()
            raise
        return workspace

    def keep_finished(self, shards: Sequence[ShardPlan]) -> None:
        """Trust no line of the journal whose file is not what it should be; remove all else."""
        planned = {shard.name: shard for shard in shards}
        self.finished = {
            name
            for name in self.finished & planned.keys()
            if is_whole(planned[name], self.folder / name)
        }
        for path in self.folder.iterdir():
            if path.name != JOURNAL and path.name not in self.finished:
                path.unlink()

    def add(self, shard: ShardPlan, write: Callable[[Path], None]) -> None:
        """Have `write` make the file, and note that it is finished."""
        unfinished = self.folder / (shard.name + _UNFINISHED)
        write(unfinished)
        unfinished.rename(self.folder / shard.name)
        sync_folder(self.folder)
        self._note({"finished": shard.name})
        self.finished.add(shard.name)

    def redo(self, names: Iterable[str]) -> None:
        """Forget these files: the next run makes them again."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
            self.finished.discard(name)

    def publish(self) -> None:
        """Make the folder DST. Everything in it is on the disk already."""
        sync_folder(self.folder)
        replaced = replaced_by(self._target)
        if self._target.exists():
            self._note({"replaces": True})
            shutil.rmtree(replaced, ignore_errors=True)
            self._target.rename(replaced)
        self.folder.rename(self._target)
        sync_folder(self._target.parent)
        _tidy(self._target, removes_replaced=self._replaces)

    def close(self) -> None:
        """Let others in."""
        os.close(self._journal)

    def _read_journal(self, *, overwrite: bool) -> None:
        lines = read_journal(self.folder / JOURNAL)
        if lines and lines[0].get("source") != self._source:
            if not overwrite:
                raise BadSettings(
                    f"{self.folder} was begun from another source, or the source has changed since:"
                    " begin anew with --overwrite, or remove that folder"
                )
            lines = []
        if not lines:
            os.ftruncate(self._journal, 0)
            self._note({"source": self._source})
        self.finished = {line["finished"] for line in lines if "finished" in line}
        self._replaces = any("replaces" in line for line in lines)
        replaced = replaced_by(self._target)
        if self._target.exists() and replaced.exists() and not self._replaces:
            raise BadSettings(f"{replaced} is in the way; move it elsewhere")

    def _note(self, line: dict[str, Any]) -> None:
        os.write(self._journal, json.dumps(line).encode() + b"\n")
        os.fsync(self._journal)
        self._replaces = self._replaces or "replaces" in line


def partial_of(target: Path) -> Path:
    """Where `target` is made."""
    return target.with_name(target.name + ".partial")


def replaced_by(target: Path) -> Path:
    """Where the old `target` is for the moment between two renames."""
    return target.with_name(target.name + ".replaced")


def was_interrupted_at_the_very_end(target: Path) -> bool:
    """Whether `target` is complete and only its journal was left behind; tidies it up then.

    Raises BadSettings if another run is about to do that.
    """
    journal = target / JOURNAL
    if not journal.is_file():
        return False
    lock = _lock(journal)
    try:
        replaces = any("replaces" in line for line in read_journal(journal))
        _tidy(target, removes_replaced=replaces)
    finally:
        os.close(lock)
    return True


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines that were written whole; a torn one, and what follows it, was never promised."""
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().split(b"\n")[:-1]:
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def is_whole(shard: ShardPlan, path: Path) -> bool:
    """Whether `path` has the planned length and begins with the planned header."""
    try:
        with path.open("rb") as file:
            return path.stat().st_size == shard.num_bytes and (
                file.read(len(shard.header)) == shard.header
            )
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine, named = os.fstat(descriptor), os.stat(path)
    except OSError:
        os.close(descriptor)
        raise BadSettings(f"another glimt quantize is working in {path.parent}") from None
    if mine.st_ino != named.st_ino:  # that run has just finished
        os.close(descriptor)
        raise BadSettings(f"another glimt quantize was working in {path.parent}")
    return descriptor


def _tidy(target: Path, *, removes_replaced: bool) -> None:
    if removes_replaced:
        shutil.rmtree(replaced_by(target), ignore_errors=True)
    (target / JOURNAL).unlink()
    sync_folder(target)
