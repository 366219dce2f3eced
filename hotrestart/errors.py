"""Every error that hotrestart raises on purpose, as one tree under `HotRestartError`.

Each class also inherits the built-in that a caller would expect (`ValueError`, `OSError`...), so that code written
against the standard library's habits keeps working.
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "ControlError",
    "DescriptorError",
    "HotRestartError",
    "LifelineError",
    "NotRestartableError",
    "NotThereError",
    "OptionError",
    "PidFileError",
    "StopAskedError",
    "TimedOutError",
    "WrongThreadError",
]


class HotRestartError(Exception):
    """The base of every error that this package raises on purpose."""


class OptionError(HotRestartError, ValueError):
    """An option has a value that cannot work; raised where the option is given, never later at a restart."""


class AddressError(HotRestartError, OSError):
    """An address cannot be understood or bound."""


class ControlError(HotRestartError):
    """A program has refused what it was asked over its control socket, or has answered nonsense."""


class DescriptorError(HotRestartError, OSError):
    """File descriptors were lost on their way between two processes."""


class LifelineError(HotRestartError, OSError):
    """What came over a lifeline is no message of this version of the protocol, or the other end has gone."""


class NotRestartableError(HotRestartError, RuntimeError):
    """This program cannot be started again: its code came from standard input, or its command is not known."""


class NotThereError(HotRestartError, OSError):
    """No program that can be controlled is there, or it has died before it could answer."""


class PidFileError(HotRestartError, OSError):
    """A pid file belongs to another live program, cannot be written, or may not be read."""


class StopAskedError(HotRestartError):
    """A restart was not made, because a stop has been asked for in the meantime."""


class TimedOutError(HotRestartError, TimeoutError):
    """A program has not answered in time. What it was asked for may happen yet."""


class WrongThreadError(HotRestartError, RuntimeError):
    """Something that CPython allows in the main thread only was asked for in another."""
