"""The rolling restart: a supervisor starts the new generation beside the old, and lets go of nothing that works."""

from __future__ import annotations
