"""Last words: one line that says why a process ended, from its exit code and whatever it printed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart.last_words import lines_of, quoted, why_it_ended
from hotrestart.processes import STATUS_UNKNOWN
from tests.harness import PATIENCE, clean_environment

pytestmark = pytest.mark.core


def why(code: int | None, output: str = "") -> str:
    return why_it_ended("it", "too early", code, output.splitlines())


def test_a_signal_is_named() -> None:
    assert why(-signal.SIGKILL, "some output") == "it was killed by signal 9 too early"


@pytest.mark.parametrize("code", [0, 1, 3, None, STATUS_UNKNOWN])
def test_without_a_traceback_the_last_line_is_quoted(code: int | None) -> None:
    assert why(code, "first\nno port given") == "it ended too early: no port given"
    assert why(code) == "it ended too early"


PRINTED = {
    "an exception": ("1 / 0", "ZeroDivisionError: division by zero"),
    "without a message": ("raise ValueError", "ValueError"),
    "of two lines": ("raise ValueError('one\\ntwo')", "ValueError: one"),
    "whose message is indented": ("raise ValueError('one\\n    two')", "ValueError: one"),
    "with something printed before": ("print('hello', flush=True)\n1 / 0", "ZeroDivisionError: division by zero"),
    "with something printed after": (
        "import atexit\natexit.register(lambda: print('good bye', flush=True))\n1 / 0",
        "ZeroDivisionError: division by zero",
    ),
    "after another": ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('port')", "KeyError: 'port'"),
    "from another": (
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('port') from error",
        "KeyError: 'port'",
    ),
    "of a class in a module": ("import json\njson.loads('')", "json.decoder.JSONDecodeError: Expecting value"),
    "a syntax error": ("exec('def')", "SyntaxError: "),
    "deep in itself": ("def f(): f()\nf()", "RecursionError: "),
    "with a note": (
        "error = ValueError('why')\nif hasattr(error, 'add_note'): error.add_note('a note')\nraise error",
        "ValueError: why",
    ),
    "words at the exit": ("import sys\nsys.exit('no port given')", "it ended too early: no port given"),
    "nothing": ("import sys\nsys.exit(3)", "it ended too early"),
    "what only looks like one": ("print('Traceback (most recent call last):')", "it ended too early: Traceback"),
    "a signal": ("import os\nos.kill(os.getpid(), 9)", "it was killed by signal 9 too early"),
}


@pytest.mark.parametrize("kind", PRINTED)
def test_what_a_real_python_printed_is_told_in_one_line(kind: str) -> None:
    code, reason = PRINTED[kind]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
    )
    said = why_it_ended("it", "too early", done.returncode, lines_of(done.stdout))
    assert said.startswith(reason)
    assert "\n" not in said


def test_a_traceback_that_is_cut_off_at_its_end_is_no_traceback() -> None:
    assert why(1, 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    1 / 0').endswith("1 / 0")


def test_the_beginning_of_a_traceback_may_be_lost() -> None:
    assert why(1, '", line 3\n  File "x.py", line 1, in f\n    1 / 0\nZeroDivisionError: x') == "ZeroDivisionError: x"


def test_the_end_is_quoted() -> None:
    lines = [str(number) for number in range(100)]
    assert quoted(lines).splitlines() == lines[80:]
    assert quoted(["one"]) == "one"
    assert quoted([]) == ""


def test_what_is_no_text_can_be_shown() -> None:
    assert lines_of(b"a\xff\nb\r\n\n") == ["a\ufffd", "b"]
    assert lines_of(b"") == []


@given(st.binary(), st.none() | st.integers(-64, 255) | st.just(STATUS_UNKNOWN))
def test_whatever_was_printed_the_reason_is_one_line(output: bytes, code: int | None) -> None:
    lines = lines_of(output)
    said = why_it_ended("it", "too early", code, lines)
    assert len(said.splitlines()) == 1
    assert isinstance(quoted(lines), str)
