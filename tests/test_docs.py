"""The README by the letter, and the examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
import socket
import textwrap
from pathlib import Path

import pytest

from tests.harness import CHECKOUT, PATIENCE, Program

pytestmark = pytest.mark.core

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


SOCKETSERVER = """
import socketserver
import hotrestart

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"%d\\n" % hotrestart.state.generation)

@hotrestart.restartable(preflight=False)
def main():
{body}
main()
"""

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

ASYNCIO = """
import asyncio
import hotrestart

async def serve(reader, writer):
    await reader.readline()
    writer.write(b"%d\\n" % hotrestart.state.generation)
    await writer.drain()
    writer.close()
    await writer.wait_closed()

{body}
asyncio.run(main())
"""


def servers() -> dict[str, str]:
    loop = block("loop.wait(listener, timeout=60)")
    threads = block("socketserver.ThreadingTCPServer")
    tasks = block("events.add_reader(loop,")
    indented = {name: textwrap.indent(body, "    ") for name, body in {"plain": loop, "threads": threads}.items()}
    return {
        "plain": PLAIN.format(body=indented["plain"]),
        "socketserver": SOCKETSERVER.format(body=indented["threads"]),
        "asyncio": ASYNCIO.format(body=tasks.replace("restartable", "restartable(preflight=False)")),
    }


@pytest.mark.parametrize("name", ["plain", "socketserver", "asyncio"])
def test_a_server_of_the_readme_refuses_nobody_while_it_restarts(program: Program, name: str) -> None:
    path = program.folder / "socket"
    source = servers()[name].replace("127.0.0.1:8000", f"unix:{path}")
    source = source.replace('ThreadingTCPServer(("127.0.0.1", 0)', f'ThreadingUnixStreamServer("{path}.unused"')
    program.deploy(source)
    program.start()
    program.wait_until(lambda: answers(path), "the socket")
    for generation in range(1, 11):
        while ask(path) < generation:
            pass
        program.hup()
    while ask(path) < 11:
        pass
    program.term()
    assert program.wait_exit() == 0


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
        client.sendall(b"hello\n")
        return int(client.recv(100))
