"""Starting the program's command as a process under the supervisor: a fork server, or a worker of its own."""

from __future__ import annotations

import os

from .. import command, fds, inheritance, processes
from ..log import info
from ..shrugging import FOR_SUPERVISORS
from .lifeline import Lifeline, pair
from .members import Member, Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .generation import Process
    from .ties import Ties

__all__ = ["launch"]


def launch(process: Process, program: command.Command, ties: Ties) -> Member:
    """The member that runs `program`, which finds out by its inheritance whose member it is. Raises OSError.

    Its standard error passes through us until it serves.
    """
    member = Member(process)
    theirs: list[int] = []
    try:
        ours, end = pair()
        member.lifeline = Lifeline(ours)
        lifeline = end.detach()
        theirs.append(lifeline)
        read_end, write_end = os.pipe()
        member.relay = Relay(fds.above_stdio(read_end))
        write_end = fds.above_stdio(write_end)
        theirs.append(write_end)
        stderr = _standard_error()
        theirs.append(stderr)
        shared = ties.numbers()[:2]  # the write end is ours alone
        document = _document(process.generation, program, [lifeline, *shared, stderr])
        memory, value = inheritance.write(document)
        theirs.append(memory)
        member.child = processes.spawn(
            program.argv,
            env={**program.env, command.VARIABLE: value},
            cwd=None if program.is_here() else program.cwd,
            keep=[lifeline, *shared, stderr, memory, *program.fds],
            redirect={2: write_end},
            blocked={*program.blocked, *document["held"]},
        )
        info(f"generation {process.generation}: process {member.child.pid} loads the program")
        return member
    except BaseException:
        for each in (member.lifeline, member.relay):
            if each is not None:
                each.close()
        raise
    finally:
        for fd in theirs:
            os.close(fd)


def _document(generation: int, program: command.Command, member: list[int]) -> dict[str, Any]:
    return {
        "role": "member",
        "parent": os.getpid(),
        "generation": generation,
        "member": member,
        "listeners": [],
        "kept": {},
        "state": {},
        "fds": {str(fd): identity for fd, identity in program.fds.items()},
        "blocked": program.blocked,
        "ignored": program.ignored,
        "held": [int(number) for number in FOR_SUPERVISORS if number not in program.blocked],
        "since": program.since,
        "nofile": program.nofile,
        "helpers": [],
        "announcing": {},
        "report": -1,
        "timeout": 0,
    }


def _standard_error() -> int:
    """A duplicate of ours, or of /dev/null where we have none."""
    try:
        return fds.above_stdio(os.dup(2))
    except OSError:
        return fds.above_stdio(os.open(os.devnull, os.O_WRONLY))
