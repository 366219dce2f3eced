"""Drop stale bytecode, so that the next generation is wholly new.

CPython takes a `.pyc` for good if the source has the time and the size that it notes. A source changed twice within a
second to the same size, or deployed with its old time (rsync -t, image layers, reproducible builds), passes that test,
and the new generation silently runs the old code. A deploy can set any time but the change time, `st_ctime`: bytecode
that is older than its source's change is suspect, and costs one compilation to be without.

The new code may load modules that the old has never loaded, perhaps long after it began to serve. So it is not the
loaded modules that are looked at, but the directories they came from, and what lies below.
"""

from __future__ import annotations

import os
import sys

from . import command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["drop_stale", "sources_changed"]


def drop_stale(since: float) -> int:
    """Remove the bytecode of sources that have changed after the wall clock's `since` and after it was written.

    Looks at the directories of all loaded modules, except the standard library (no part of a deploy), and at the
    packages below them. Returns how many files were removed; what cannot be removed is left. Costs one system call a
    file when nothing has changed. Safe in any thread.
    """
    return sum(_drop_in(source_folder, cache_folder, since) for source_folder, cache_folder in _folders())


def sources_changed(since: float) -> bool:
    """Whether any source file in the same places has changed after the wall clock's `since`."""
    for folder, _ in _folders():
        try:
            with os.scandir(folder) as entries:
                if any(each.name.endswith(".py") and each.stat().st_ctime > since for each in entries):
                    return True
        except OSError:
            continue  # it has gone, or is not ours to read
    return False


def _folders() -> Iterator[tuple[str, str]]:
    """Folders with sources, each with the folder of its bytecode."""
    seen: set[str] = set()
    pending = list(_loaded_from())
    while pending:
        source_folder, cache_folder = pending.pop()
        if source_folder not in seen:
            seen.add(source_folder)
            yield source_folder, cache_folder
            if sys.pycache_prefix is None:
                pending += _packages_in(source_folder)


def _loaded_from() -> Iterator[tuple[str, str]]:
    """The folders that modules were loaded from, each with the folder of its bytecode."""
    library = os.path.dirname(os.__file__)
    script = os.path.join(command.first.cwd or "", command.first.script)  # __main__ forgets its file when it has run
    yield os.path.dirname(script), os.path.join(os.path.dirname(script), "__pycache__")
    for module in list(sys.modules.values()):
        try:
            spec = object.__getattribute__(module, "__dict__")["__spec__"]  # a lazy module would load by a plain look
            folder = os.path.dirname(spec.origin)
            if spec.cached and (not folder.startswith(library) or "-packages" in folder):
                yield folder, os.path.dirname(spec.cached)
        except Exception:  # what stands in sys.modules need not be a module, and may raise anything
            continue


def _packages_in(folder: str) -> Iterator[tuple[str, str]]:
    """The folders in `folder` that have bytecode."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                cache_folder = os.path.join(entry.path, "__pycache__")
                if "." not in entry.name and entry.is_dir(follow_symlinks=False) and os.path.isdir(cache_folder):
                    yield entry.path, cache_folder
    except OSError:
        return  # it has gone, or is not ours to read


def _drop_in(source_folder: str, cache_folder: str, since: float) -> int:
    dropped = 0
    mark = f".{sys.implementation.cache_tag}."
    try:
        names = os.listdir(cache_folder)
    except OSError:
        return 0
    for name in names:
        if mark not in name:
            continue
        try:
            source = os.stat(f"{source_folder}/{name[: name.index(mark)]}.py")
            if source.st_ctime <= since:
                continue
            cached = os.path.join(cache_folder, name)
            if source.st_ctime_ns >= os.stat(cached).st_mtime_ns:  # as late will do: a clock has ticks
                os.unlink(cached)
                dropped += 1
        except OSError:
            continue  # the source or the bytecode has gone, or is not ours to remove
    return dropped
