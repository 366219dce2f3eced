"""Servers that lose nothing when they are asked to end: stop accepting, serve what was accepted, part in good order.

What is accepted but not yet read when a process ends is reset, and so is an answer whose connection is closed while
input lies unread. Here is what programs need against that, for each kind of server of the standard library, and for
those of others that run on asyncio.
"""

from __future__ import annotations

from .accepting import accept, serve
from .draining import DrainingListener
from .keeping import KeepAlive
from .last_answer import LastAnswer
from .streams import serve_streams

__all__ = ["DrainingListener", "KeepAlive", "LastAnswer", "accept", "serve", "serve_streams"]
