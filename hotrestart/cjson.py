"""JSON by CPython's C accelerator alone, without the module `json`.

`import json` pulls in `re`, `enum` and `functools`: 7 to 11 ms, as much again as a small program takes to boot, and
every generation after the first reads one small document. The accelerator does all the work anyway. Where it is
missing, differs (it is not a public interface) or finds fault with the text, `json` itself has the last word.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["dumps", "loads"]


def dumps(value: Any) -> str:
    """`value` as JSON. Raises TypeError, ValueError or RecursionError for what JSON cannot say, such as NaN."""
    if "json" not in sys.modules:
        try:
            import _json

            accelerator: Any = _json
            encode = accelerator.make_encoder(
                {}, None, _json.encode_basestring_ascii, None, ": ", ", ", False, False, False
            )
            return "".join(encode(value, 0))
        except Exception:
            pass  # json repeats it, and says what is wrong
    import json

    return json.dumps(value, allow_nan=False)


def loads(text: str) -> Any:
    """The value that `text` is the JSON of. Raises ValueError or RecursionError for anything else."""
    if "json" not in sys.modules:
        try:
            import _json

            accelerator: Any = _json
            value, end = accelerator.make_scanner(_Settings)(text, 0)
            if end == len(text):
                return value
        except Exception:
            pass  # 3.10 and 3.11 raise SystemError for bad text as long as json is not loaded
    import json

    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


class _Settings:
    """What json.JSONDecoder hands to the scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse)
