"""The README by the letter, and the examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
import socket
import textwrap
import time
from pathlib import Path

import pytest

from tests.harness import CHECKOUT, PATIENCE, Program

README = (CHECKOUT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(containing: str) -> str:
    (found,) = [each for each in BLOCKS if containing in each]
    return found


@pytest.mark.parametrize("name", ["sleeper", "loop"])
def test_examples_in_docstrings_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"hotrestart.{name}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_every_block_of_the_readme_is_python() -> None:
    assert len(BLOCKS) >= 5
    for each in BLOCKS:
        compile(each, "README.md", "exec", flags=0x2000)  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def test_every_test_that_the_readme_names_exists() -> None:
    promises = README[README.index("## Promises") : README.index("## Figures")]
    for name in re.findall(r"`(tests/[^`]+)`", promises):
        assert (CHECKOUT / name).exists(), name
    for name in re.findall(r"`(test_\w+)`", promises):
        assert any(f"def {name}(" in path.read_text() for path in (CHECKOUT / "tests").rglob("*.py")), name


def test_the_smallest_program_restarts(program: Program) -> None:
    program.deploy(
        """
class queue:
    def take():
        report(ready=hotrestart.state.generation)
def handle(job): ...
"""
        + block("def main():\n    with hotrestart.worker_loop()")
    )
    program.start()
    for generation in (1, 2, 3):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=4)
    assert program.stop() == 0


def test_the_home_made_handler_restarts(program: Program) -> None:
    program.deploy(
        "import hotrestart\ndef work(): report(ready=hotrestart.state.generation)\n"
        + block("signals.handling(sleeper):")
    )
    program.start()
    for generation in (1, 2, 3):
        program.wait_report(ready=generation)
        program.hup()
    program.wait_report(ready=4)
    assert program.stop() == 0


PLAIN = """
import hotrestart

def serve(connection):
    connection.setblocking(True)
    with connection:
        connection.recv(100)
        connection.sendall(b"%d\\n" % hotrestart.state.generation)

@hotrestart.restartable(preflight=False)
def main():
    listener = hotrestart.listen("127.0.0.1:8000")
{body}
main()
"""

ACCEPTING = """
import hotrestart
from hotrestart import serving

def serve(connection):
    with connection:
        connection.recv(100)
        connection.sendall(b"%d\\n" % hotrestart.state.generation)

@hotrestart.restartable(workers=2)
def main():
{body}
main()
"""

HTTP = """
import http.server
import hotrestart
from hotrestart import serving

{body}

def answer(self):
    self.send_response(200)
    self.send_header("Content-Length", "3")
    self.end_headers()
    self.wfile.write(b"%3d" % hotrestart.state.generation)

Handler.do_GET = answer
Handler.log_message = lambda *_: None
Handler.address_string = lambda self: ""
main()
"""

ASYNCIO = """
import asyncio
import hotrestart
from hotrestart import serving

async def handle(reader, writer):
    await reader.readline()
    writer.write(b"%d\\n" % hotrestart.state.generation)
    await writer.drain()
    writer.close()
    await writer.wait_closed()

{body}
"""


def servers() -> dict[str, str]:
    loop = block("loop.wait(listener, timeout=60)")
    accepting = block("serving.accept(listener, loop)")
    plain = PLAIN.format(body=textwrap.indent(loop, "    "))
    return {
        "plain": plain,
        "plain workers": plain.replace("preflight=False", "workers=4"),
        "accepting": ACCEPTING.format(body=textwrap.indent(accepting, "    ")),
        "http": HTTP.format(body=block("http.server.ThreadingHTTPServer")),
        "asyncio": ASYNCIO.format(body=block("serving.serve_streams(")),
    }


@pytest.mark.parametrize("name", ["plain", "plain workers", "accepting", "http", "asyncio"])
def test_a_server_of_the_readme_refuses_nobody_while_it_restarts(program: Program, name: str) -> None:
    path = program.folder / "socket"
    program.deploy(servers()[name].replace('listen("127.0.0.1:8000")', f'listen("unix:{path}")'))
    program.start()
    program.wait_until(lambda: answers(path), "the socket")
    for generation in range(1, 11):
        while ask(path) < generation:
            time.sleep(0.002)
        program.hup()
    while ask(path) < 11:
        time.sleep(0.002)
    program.term()
    assert program.wait_exit() == 0
    assert "Traceback" not in program.log()


def test_a_user_s_test_is_as_the_readme_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "socket"
    source = servers()["http"].replace('listen("127.0.0.1:8000")', f'listen("unix:{path}")').replace("report(", "str(")
    (tmp_path / "server.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    given: dict[str, object] = {"fetch": lambda _url: ask(path)}
    exec(block("def test_a_restart_loses_no_request"), given)
    test: object = given["test_a_restart_loses_no_request"]
    assert callable(test)
    test(tmp_path / "program")


def answers(path: Path) -> bool:
    """Whether the first generation has come to listen()."""
    try:
        return ask(path) == 1
    except (FileNotFoundError, ConnectionRefusedError):
        return False


def ask(path: Path) -> int:
    """One request on a new connection; the generation that answered. Anything but an answer is an error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := client.recv(1000):
            answer += chunk
        return int(answer.split(b"\r\n\r\n")[-1])
