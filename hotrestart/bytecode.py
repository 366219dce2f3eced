"""Drop stale bytecode, so that the next generation is wholly new.

CPython takes a `.pyc` for good if the source has the time and the size that it notes. A source changed twice within a
second to the same size, or deployed with its old time (rsync -t, image layers, reproducible builds), passes that test,
and the new generation silently runs the old code. A deploy can set any time but the change time, `st_ctime`: a
bytecode file older than its source's change time is suspect, and costs one compilation to be without.
"""

from __future__ import annotations

import os
import sys
from time import time

__all__ = ["drop_stale"]

_CLOCK_GRAIN = 1.0  # seconds: file times come from a coarser clock, perhaps another machine's


def drop_stale(since: float) -> tuple[int, float]:
    """Remove the bytecode of every loaded module whose source has changed after the wall clock's `since`.

    Returns how many were removed, and the `since` of the next call. Bytecode younger than its source is left, and so
    is what cannot be removed. One system call a module when nothing has changed. Safe in any thread.
    """
    dropped, now = 0, time()
    for module in list(sys.modules.values()):
        try:
            spec = object.__getattribute__(module, "__dict__")["__spec__"]  # a lazy module would load by a plain look
            source, cached = spec.origin, spec.cached
            if cached and _changed_after(source, since) and _changed_after(source, os.stat(cached).st_mtime):
                os.unlink(cached)
                dropped += 1
        except Exception:  # what stands in sys.modules need not be a module, and may raise anything
            continue  # it did not come from a source file, or its bytecode is gone or not ours to remove
    return dropped, now - _CLOCK_GRAIN


def _changed_after(source: str, moment: float) -> bool:
    return os.stat(source).st_ctime > moment
