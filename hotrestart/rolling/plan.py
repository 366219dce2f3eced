"""`Plan`: how many workers each generation is to have just now; what there is, and what follows from it."""

from __future__ import annotations

from .generation import READY, STARTING, Generation, Process

__all__ = ["Plan"]


class Plan:
    """`current` serves and `coming` gets ready (numbers, 0 for none); `extra`: so many workers more than the options
    say."""

    def __init__(self) -> None:
        self.generations: dict[int, Generation] = {}
        self.current: int = 0
        self.coming: int = 0
        self.extra: int = 0
        self.is_stopping: bool = False
        self._queued: list[tuple[object, float]] = []  # who has asked for a restart, and when

    @property
    def workers_wanted(self) -> int:
        """How many workers the program is to have, whatever restart is under way; 0 before the first commit."""
        current = self.generations.get(self.current)
        return self._wanted(current) if current is not None else 0

    @property
    def is_idle(self) -> bool:
        """Nothing is under way: the current generation has all it wants, and there is no other."""
        generation = self.generations.get(self.current)
        return (
            generation is not None
            and len(self.generations) == 1
            and not self._queued
            and generation.can_fork
            and all(each.state == READY and not each.is_retiring for each in generation.processes())
            and len(generation.workers) == self._wanted(generation)
        )

    def _processes(self) -> list[Process]:
        return [process for generation in self.generations.values() for process in generation.processes()]

    def _generation_of(self, process: Process) -> Generation | None:
        """The generation that has it; None if the process has ended already."""
        generation = self.generations.get(process.generation)
        return generation if generation is not None and process in generation else None

    def _is_doomed(self, generation: Generation) -> bool:
        return self.is_stopping or generation.number not in (self.current, self.coming)

    def _batch(self) -> int | None:
        number = self.coming or self.current
        return self.generations[number].options.batch if number in self.generations else None

    def _wanted(self, generation: Generation) -> int:
        """How many workers the generation is to have once it is the only one."""
        current = self.generations.get(self.current, generation)
        same = generation.options.workers == current.options.workers
        return (generation.options.workers or 1) + (self.extra if same else 0)

    def _target(self, generation: Generation) -> int:
        """How many it is to have now: with `batch`, each new worker that is ready stands in for an old one."""
        if generation.number == self.coming:
            return 0 if generation.is_failing else self._wanted(generation)
        coming = self.generations.get(self.coming)
        relieved = coming.count(READY) if coming and not coming.is_failing and self._batch() else 0
        return max(0, self._wanted(generation) - relieved)

    def _room(self, generation: Generation) -> int:
        """How many more workers there may be, draining ones counted; what the current generation lacks is set aside."""
        present = [each for each in self.generations.values() if not self._is_doomed(each)]
        wanted = max((self._wanted(each) for each in present), default=0)
        total = sum(len(each.workers) for each in self.generations.values())
        current = self.generations.get(self.current)
        if current is not None and current is not generation:
            total += max(0, self._target(current) - current.count(STARTING, READY))
        return max(0, wanted + (self._batch() or wanted) - total)
