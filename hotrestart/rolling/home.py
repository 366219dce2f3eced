"""`Home`: which interpreter and which hotrestart a process runs on, to see when the program has moved."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Home"]


class Home:
    """An interpreter, by path and by file, and a hotrestart, by the folder it is in and by version."""

    python: str
    file: list[int]
    library: str
    version: str

    __slots__ = ("file", "library", "python", "version")

    def __init__(self, python: str, file: list[int], library: str, version: str) -> None:
        self.python, self.file, self.library, self.version = python, file, library, version

    @classmethod
    def own(cls) -> Home:
        """Of this process."""
        import hotrestart

        try:
            status = os.stat("/proc/self/exe")
            file = [status.st_dev, status.st_ino]
        except OSError:
            file = []
        library = os.path.dirname(os.path.dirname(os.path.abspath(hotrestart.__file__)))
        return cls(sys.executable, file, library, hotrestart.__version__)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Home:
        """Raises LookupError, TypeError or ValueError if it is none."""
        home = cls(*(document[name] for name in ("python", "file", "library", "version")))
        if not all(isinstance(each, str) for each in (home.python, home.library, home.version)):
            raise ValueError(f"{document!r} says nothing about an interpreter")
        return home

    def as_document(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        """By file, not by path: a virtualenv's symlink that has been switched has the same path."""
        return isinstance(other, Home) and self._essence() == other._essence()

    def __hash__(self) -> int:
        return hash(self.library)

    def _essence(self) -> tuple[object, ...]:
        return (self.file or self.python, self.library, self.version)
