"""`Ties`: what all members of a program share with its supervisor: the page of beats, and the tether."""

from __future__ import annotations

from ..leash import Tether
from .beats import Beats

__all__ = ["Ties"]


class Ties:
    """Made by whoever is or becomes the supervisor; members have descriptors of the same."""

    beats: Beats
    tether: Tether

    __slots__ = ("beats", "tether")

    def __init__(self, beats: Beats | None = None, tether: Tether | None = None) -> None:
        self.beats, self.tether = beats or Beats(), tether or Tether()

    @classmethod
    def of(cls, numbers: list[int]) -> Ties:
        """What `numbers` says in another process, or before an exec."""
        beats, *tether = numbers
        return cls(Beats(beats), Tether(*tether))

    def numbers(self) -> list[int]:
        """The descriptors; of the tether both ends, in the supervisor."""
        return [self.beats.fd, self.tether.read_end, self.tether.write_end]

    def close(self) -> None:
        """Give the descriptors back; who is leashed learns it."""
        self.beats.close()
        self.tether.close()
