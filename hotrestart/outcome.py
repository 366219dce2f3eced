"""`Outcome`: what became of a restart that somebody asked for."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["Outcome"]


class Outcome:
    """The true end of a restart; for reading.

    `ok`: the new generation serves (otherwise the old one does, or the program has ended). `generation`: the one that
    was started. `stage`: the last stage that it came to: "load", "ready", "soak", "commit" or "stop"; in place
    "preflight", "drain", "load", "ready" or "stop". `reason`: why it failed, in one line. `detail`: the end of the new
    code's traceback or output. `pid`: the program's. `seconds`: from the first request to the end. `stages`: the
    seconds of each stage.
    """

    ok: bool
    generation: int
    stage: str
    reason: str
    detail: str
    seconds: float
    stages: dict[str, float]

    __slots__ = ("detail", "generation", "ok", "pid", "reason", "seconds", "stage", "stages")

    def __init__(
        self,
        ok: bool,
        *,
        generation: int,
        stage: str,
        reason: str = "",
        detail: str = "",
        pid: int | None = None,
        seconds: float = 0.0,
        stages: Mapping[str, float] | None = None,
    ) -> None:
        self.ok, self.generation, self.stage, self.reason, self.detail = ok, generation, stage, reason, detail
        self.pid: int = os.getpid() if pid is None else pid
        self.seconds, self.stages = seconds, dict(stages or {})

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Outcome:
        """What `as_document` has put down. Raises TypeError if it is none."""
        return cls(**document)

    def as_document(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.stages.items())
        if self.ok:
            return f"generation {self.generation} serves after {self.seconds:.2f} s ({spent})"
        return f"generation {self.generation} failed at stage {self.stage}: {self.reason}"

    def __repr__(self) -> str:
        return f"<Outcome {self}>"
