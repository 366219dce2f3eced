"""Sockets, state and code that go from one generation to the next: nobody is refused, nothing is believed blindly."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hotrestart import errors, fds, inheritance, processes
from tests import harness
from tests.harness import Program, clean_environment, worker
from tests.hazards.sources import WAIT_FOR, go, is_running
from tests.rolling.programs import Rolling, answer_on, service

pytestmark = pytest.mark.core

SERVER = """
import os, hotrestart
@hotrestart.restartable(preflight=PREFLIGHT)
def main():
    listener = hotrestart.listen(ADDRESS)
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, address=listener.getsockname())
        while loop.running:
            if not loop.wait(listener):
                continue
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            with connection:
                connection.settimeout(60)
                connection.sendall(connection.recv(100) + b" %d" % hotrestart.state.generation)
    AT_THE_END
main()
"""


def server(address: str = "127.0.0.1:0", preflight: bool = False, at_the_end: str = "pass") -> str:
    source = SERVER.replace("ADDRESS", repr(address)).replace("PREFLIGHT", str(preflight))
    return source.replace("AT_THE_END", at_the_end)


def ask(address: object, question: bytes = b"hello") -> bytes:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as connection:
        connection.settimeout(60)
        connection.connect(address if isinstance(address, str) else tuple(address))  # type: ignore[arg-type]
        connection.sendall(question)
        answer = b""
        while chunk := connection.recv(100):
            answer += chunk
        return answer


class Clients:
    """Threads that ask all the time, and what they were told."""

    def __init__(self, address: object, count: int = 3) -> None:
        self.answers: list[bytes] = []
        self.failures: list[str] = []
        self._address, self._stop = address, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        while not self._stop.wait(harness.PACE):
            try:
                self.answers.append(ask(self._address))
            except OSError as error:
                self.failures.append(repr(error))

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_h48_nobody_is_refused_or_reset_in_twenty_restarts(program: Program, where: str) -> None:
    address = "127.0.0.1:0" if where == "tcp" else f"unix:{program.folder}/socket"
    program.deploy(server(address))
    program.start()
    with Clients(program.wait_report(ready=1)["address"]) as clients:
        for generation in range(1, 21):
            some = len(clients.answers) + 10
            program.wait_report(ready=generation)
            program.wait_until(lambda some=some: len(clients.answers) >= some, "some answers")
            program.hup()
        program.wait_report(ready=21)
    assert clients.failures == []
    served_by = {int(answer.removeprefix(b"hello ")) for answer in clients.answers}
    assert {*range(1, 21)} <= served_by
    assert program.stop() == 0


BLOCKING = (
    WAIT_FOR
    + """
import os, threading, hotrestart
listener = hotrestart.listen("127.0.0.1:0", backlog=BACKLOG)
def now():
    return {"timeout": listener.gettimeout(), "blocking": os.get_blocking(listener.fileno()),
            "inheritable": os.get_inheritable(listener.fileno())}
@hotrestart.restartable
def main():
    report(ready=hotrestart.state.generation, **now())
    listener.setblocking(True)
    with hotrestart.worker_loop() as loop:
        if hotrestart.state.generation == 1:
            wait_for("look")
            report(look=1, **now())
        loop.sleep(None)
main()
"""
)


def backlog_of(address: object) -> int:
    """What `ss` calls Send-Q of a listening socket: the longest queue it may have."""
    port = address[1]  # type: ignore[index]
    found = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], stdout=subprocess.PIPE, check=True).stdout
    return int(found.split()[2])


def test_h49_the_blocking_mode_is_told_truly_and_a_preflight_does_not_change_it(program: Program) -> None:
    source = BLOCKING.replace("BACKLOG", "1024")
    program.deploy(source)
    program.start()
    program.wait_report(ready=1)
    assert program.reports()[0] == {"ready": 1, "timeout": 0.0, "blocking": False, "inheritable": False}
    program.deploy(source.replace("@hotrestart.restartable", "import missing_module"))
    program.hup()
    program.wait_log("restart refused")
    go(program.folder, "look")
    program.wait_report(look=1)
    assert program.reports()[-1] == {"look": 1, "timeout": None, "blocking": True, "inheritable": False}
    program.deploy(source)
    program.hup()
    program.wait_report(ready=2)
    assert program.reports()[-1] == {"ready": 2, "timeout": 0.0, "blocking": False, "inheritable": False}


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "app.py"])
"""


def test_h49_a_preflight_does_not_change_the_blocking_mode_of_systemds_sockets(program: Program) -> None:
    source = (
        BLOCKING.replace("BACKLOG", "1024")
        .replace("127.0.0.1:0", "127.0.0.1:1")
        .replace('"127', 'name="web", address="127')
    )
    with socket.create_server(("127.0.0.1", 0)) as given:
        program.deploy(source)
        program.start(
            "-c",
            AS_SYSTEMD,
            str(given.fileno()),
            pass_fds=(given.fileno(),),
            env={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
        )
        program.wait_report(ready=1)
    program.deploy(source.replace("@hotrestart.restartable", "import missing_module"))
    program.hup()
    program.wait_log("restart refused")
    go(program.folder, "look")
    program.wait_report(look=1)
    assert program.reports()[-1] == {"look": 1, "timeout": None, "blocking": True, "inheritable": False}


def test_h49_a_preflight_that_fails_does_not_shorten_the_queue(program: Program) -> None:
    program.deploy(server(preflight=True))
    program.start()
    address = program.wait_report(ready=1)["address"]
    try:
        before = backlog_of(address)
    except FileNotFoundError:
        pytest.skip("ss is not installed")
    program.deploy("import hotrestart\nhotrestart.listen('127.0.0.1:0', backlog=3)\nimport missing_module\n")
    program.hup()
    program.wait_log("restart refused")
    assert backlog_of(address) == before


@pytest.mark.parametrize("end", ["listener.close()", "listener.close(); listener = None; import gc; gc.collect()"])
def test_h50_a_server_that_closes_its_listener_while_it_drains_refuses_nobody(program: Program, end: str) -> None:
    program.deploy(WAIT_FOR + server(at_the_end=f"{end}\n    report(closed=True)\n    wait_for('go')"))
    program.start()
    address = program.wait_report(ready=1)["address"]
    program.hup()
    program.wait_report(closed=True)
    with socket.create_connection(tuple(address), 60) as waiting:  # type: ignore[arg-type]
        waiting.sendall(b"in the gap")
        go(program.folder, "go")
        assert waiting.recv(100) == b"in the gap 2"


def test_h51_a_unix_path_stays_the_same_file_over_restarts(program: Program) -> None:
    path = program.folder / "socket"
    program.deploy(server(f"unix:{path}", at_the_end="listener.close()"))
    program.start()
    program.wait_report(ready=1)
    inode = path.stat().st_ino
    for generation in (2, 3):
        program.hup()
        program.wait_report(ready=generation)
        assert path.stat().st_ino == inode
        assert ask(str(path)) == b"hello %d" % generation
    assert program.stop() == 0


ASYNCIO = """
import asyncio, hotrestart
async def handle(reader, writer):
    writer.write(await reader.read(100) + b" %d" % hotrestart.state.generation)
    await writer.drain()
    writer.close()
async def serve():
    asked = asyncio.Event()
    running = asyncio.get_running_loop()
    with hotrestart.worker_loop(preflight=False) as loop:
        running.add_reader(loop, asked.set)
        unix = await asyncio.start_unix_server(handle, sock=hotrestart.listen("unix:socket"))
        async with unix:
            report(ready=hotrestart.state.generation)
            await asked.wait()
        running.remove_reader(loop)
asyncio.run(serve())
"""


def test_h51_asyncio_does_not_take_the_path_away_from_the_next_generation(program: Program) -> None:
    keep = ", cleanup_socket=False" if sys.version_info >= (3, 13) else ""  # as the README says
    program.deploy(ASYNCIO.replace('"unix:socket")', f'"unix:socket"){keep}'))
    program.start()
    program.wait_report(ready=1)
    program.hup()
    program.wait_report(ready=2)
    assert ask(f"{program.folder}/socket") == b"hello 2"


def pair() -> tuple[socket.socket, socket.socket]:
    first, second = socket.socketpair()
    for each in (first, second):
        each.settimeout(60)
    return first, second


@pytest.mark.parametrize("count", [0, 1, 253, 254, 600])
@pytest.mark.parametrize("data", [b"", b"some", b"x" * 60000])
def test_h52_any_number_of_descriptors_arrives_close_on_exec(count: int, data: bytes) -> None:
    first, second = pair()
    with first, second, open(os.devnull, "rb") as null:
        sender = threading.Thread(target=fds.send_fds, args=(first, [null.fileno()] * count, data))
        sender.start()
        arrived, received = fds.recv_fds(second)
        sender.join()
        try:
            assert arrived == data
            assert len(received) == count
            assert not any(map(os.get_inheritable, received))
            assert all(os.path.sameopenfile(null.fileno(), fd) for fd in received)
        finally:
            for fd in received:
                os.close(fd)


def test_h52_descriptors_that_the_kernel_drops_are_an_error_and_none_stays_open() -> None:
    first, second = pair()
    with first, second, open(os.devnull, "rb") as null:
        fds.send_fds(first, [null.fileno()] * 100, b"data")
        before = fds.open_fds()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = [fd for fd in range(limits[0]) if fd not in before]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[20], limits[1]))
        try:
            with pytest.raises(errors.DescriptorError, match="limit on open files"):
                fds.recv_fds(second)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert fds.open_fds() == before


def test_h52_a_message_cut_off_is_an_error_and_no_descriptor_stays_open() -> None:
    first, second = pair()
    with first, second, open(os.devnull, "rb") as null:
        before = fds.open_fds()
        third, fourth = pair()
        with third, fourth:
            sender = threading.Thread(target=fds.send_fds, args=(third, [null.fileno()] * 300, b"data"))
            sender.start()
            sender.join()
            start, ancillary, _, _ = fourth.recvmsg(100, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
            rights = [(level, kind, content) for level, kind, content in ancillary]
            first.sendmsg([start[:10]], rights)
            for fd in fds.open_fds():
                if fd not in before and fd not in (third.fileno(), fourth.fileno()):
                    os.close(fd)
        first.close()
        open_before = fds.open_fds()
        with pytest.raises(errors.DescriptorError):
            fds.recv_fds(second)
        assert fds.open_fds() == open_before
        assert fds.recv_fds(second) == (b"", [])


def test_h53_a_child_gets_a_descriptor_that_is_never_inheritable_here(tmp_path: Path) -> None:
    """Other threads start children all the time; none of them must catch it."""
    kept = os.open(tmp_path, os.O_RDONLY)
    stop, caught = threading.Event(), []
    code = "import os, sys\ntry: os.fstat(int(sys.argv[1]))\nexcept OSError: sys.exit(3)"

    def others() -> None:
        while not stop.is_set():
            command = [sys.executable, "-I", "-S", "-c", code, str(kept)]
            caught.append(subprocess.run(command, close_fds=False, check=False).returncode)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(20):
            child = processes.spawn([sys.executable, "-I", "-S", "-c", code, str(kept)], env={}, keep=[kept])
            assert not os.get_inheritable(kept)
            assert child.wait(60) == 0
    finally:
        stop.set()
        thread.join()
        os.close(kept)
    assert set(caught) == {3}


CHILD = """
import os, hotrestart
try:
    os.fstat(9)
    is_open = True
except OSError:
    is_open = False
print(hotrestart.state.generation, "HOTRESTART" in os.environ, is_open, hotrestart.inherited("secret"))
"""


@pytest.mark.parametrize(
    "value",
    ["", "garbage", "9", "9:", "-1:5", "9:1", "10:1", "99999999999:1", "9:INODE", "MEMORY", "STALE", "\udcff\udcfe"],
    ids=repr,
)
def test_h55_a_leaked_variable_does_no_harm_to_a_child_and_gives_one_warning(value: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"format": 1}')
    file = os.open(tmp_path / "file", os.O_RDONLY)
    document = {"role": "generation", "pid": os.getpid(), "generation": 7, "state": {"secret": 1}}
    if value == "STALE":  # meant for this child, but not the file that the variable names
        document["parent"] = os.getpid()
    memory, of_another = inheritance.write(document)
    given = fcntl.fcntl(memory if value in ("MEMORY", "STALE") else file, fcntl.F_DUPFD, 20)
    try:
        value = value.replace("INODE", str(os.fstat(file).st_ino)).replace("MEMORY", f"9:{of_another.split(':')[1]}")
        value = value.replace("STALE", f"9:{int(of_another.split(':')[1]) + 1}")
        script = f'exec 9<&{given}; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "bash", sys.executable, "-c", CHILD],
            env={**clean_environment(), "HOTRESTART": value},
            pass_fds=(given,),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    finally:
        for fd in (file, memory, given):
            os.close(fd)
    assert done.stdout == "1 False True None\n"
    assert len(done.stderr.splitlines()) == 1
    assert "HOTRESTART" in done.stderr
    assert "is ignored" in done.stderr


def test_h55_a_program_started_by_a_generation_is_no_generation(program: Program) -> None:
    source = """
import os, subprocess, sys, hotrestart
EVERYTHING = dict(each.split("=", 1) for each in open("/proc/self/environ").read().split("\\0")[:-1])
@hotrestart.restartable
def main():
    hotrestart.bequeath("secret", 1)
    with hotrestart.worker_loop() as loop:
        for environment in (None, {**os.environ, **EVERYTHING}):
            for close_fds in (True, False):
                code = "import hotrestart; print(hotrestart.state.generation, hotrestart.inherited('secret'))"
                said = subprocess.run([sys.executable, "-c", code], env=environment, close_fds=close_fds,
                                      stdout=subprocess.PIPE, check=True).stdout.decode()
                assert said == "1 None\\n", said
        report(ready=hotrestart.state.generation, leaked="HOTRESTART" in EVERYTHING)
        loop.sleep(None)
main()
"""
    program.deploy(source)
    program.start()
    for generation in (1, 2, 3):
        program.wait_report(ready=generation, leaked=generation > 1)
        program.hup()
    program.wait_report(ready=4)
    assert program.stop() == 0


@pytest.mark.parametrize("is_good", [True, False], ids=["good", "broken"])
def test_h56_a_grandchild_that_holds_the_preflights_pipes_does_not_delay_the_verdict(
    program: Program, is_good: bool
) -> None:
    program.deploy(worker(version=1))
    program.start()
    program.wait_report(ready=1)
    grandchild = """
import os, subprocess, sys
if "HOTRESTART" in os.environ and not os.path.exists("once"):
    open("once", "w").close()
    for fd in range(3, 50):
        try:
            os.set_inheritable(fd, True)
        except OSError:
            pass
    report(grandchild=subprocess.Popen(["sleep", "120"], close_fds=False, start_new_session=True).pid)
"""
    program.deploy(grandchild + (worker(version=2) if is_good else "import hotrestart\nimport missing_module\n"))
    started = time.monotonic()
    program.hup()
    try:
        if is_good:
            program.wait_report(ready=2)
        else:
            program.wait_log(
                "restart refused, the old code goes on: ModuleNotFoundError: No module named 'missing_module'"
            )
        pid = int(program.reports()[1]["grandchild"])  # type: ignore[call-overload]
        assert is_running(pid) or time.monotonic() > started + 100
    finally:
        for each in program.reports():
            if "grandchild" in each and is_running(int(each["grandchild"])):  # type: ignore[call-overload]
                os.kill(int(each["grandchild"]), signal.SIGKILL)  # type: ignore[call-overload]


@pytest.mark.parametrize("preflight", [False, True], ids=["", "with preflight"])
def test_h59_a_source_changed_under_its_old_time_and_size_is_loaded_anew(program: Program, preflight: bool) -> None:
    def deploy(version: int) -> None:
        path = program.deploy(f"VERSION = {version}\n", "helper.py")
        os.utime(path, ns=(10**18, 10**18))

    deploy(1)
    source = "import helper\n" + worker(options=f"(preflight={preflight})").replace(
        "VERSION = 1", "VERSION = helper.VERSION"
    )
    program.deploy(source)
    program.start()
    program.wait_report(ready=1, version=1)
    for version in (2, 3, 4):
        deploy(version)
        program.hup()
        program.wait_report(ready=version, version=version)
    assert list((program.folder / "__pycache__").glob("helper.*"))


# -- connections that are open when the program is asked to end ------------------------------------------------------

ANSWERING = """
import asyncio, http.server, os, ssl, time, hotrestart
from hotrestart import serving, state

VERSION = {version}

class Handler(serving.KeepAlive, http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    linger = 60.0  # a test on a busy machine may be slow to ask

    def setup(self):
        super().setup()
        report(accepted=VERSION)
        while os.path.exists("do not read"):
            time.sleep(0.005)

    def do_GET(self):  # which does not read what was posted
        report(asked=VERSION)
        while self.path == "/hold" and not os.path.exists("go"):
            time.sleep(0.005)
        self.send_response(200)
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"%d" % VERSION)

    do_POST = do_GET

    def log_message(self, *_): pass

class Server(http.server.ThreadingHTTPServer):
    def get_request(self):
        connection, address = super().get_request()
        if os.path.exists("key"):
            connection.settimeout(60)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain("certificate", "key")
            connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

def in_threads():
    listener = hotrestart.listen("127.0.0.1:0")
    server = Server(("", 0), Handler, bind_and_activate=False)
    with hotrestart.worker_loop() as loop:
        report(address=listener.getsockname())
        serving.serve(server, listener, loop)

async def answer(reader, writer):
    report(accepted=VERSION)
    while os.path.exists("do not read"):
        await asyncio.sleep(0.005)
    await reader.readuntil(b"\\r\\n\\r\\n")
    head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: 1\\r\\n\\r\\n"
    writer.write(head + b"%d" % VERSION)

async def in_asyncio():
    listener = hotrestart.listen("127.0.0.1:0")
    async with hotrestart.worker_loop() as loop:
        report(address=listener.getsockname())
        await serving.serve_streams(answer, listener, loop)

hotrestart.on_stop(lambda: report(ending=VERSION))
main = hotrestart.restartable({options})({main})
{call}
"""

KINDS = pytest.mark.parametrize("options", ["workers=2, grace=60", "grace=60"], ids=["workers", "in place"])


def answering(version: int, options: str, main: str = "in_threads") -> str:
    call = "main()" if main == "in_threads" else "asyncio.run(main())"
    return ANSWERING.format(version=version, options=options, main=main, call=call)


def connect(program: Program) -> socket.socket:
    address = next(each["address"] for each in program.reports() if "address" in each)
    return socket.create_connection(tuple(address), 60)  # type: ignore[arg-type]


def read_answer(client: socket.socket) -> tuple[bytes, bytes]:
    """The head, in small letters, and the body of one octet."""
    said = b""
    while not said.partition(b"\r\n\r\n")[2]:
        chunk = client.recv(100)
        assert chunk, said
        said += chunk
    head, _, body = said.partition(b"\r\n\r\n")
    return head.lower(), body


def read_to_the_end(client: socket.socket) -> bytes:
    """A reset raises."""
    said = b""
    while chunk := client.recv(65536):
        said += chunk
    return said


@KINDS
def test_h54_tls_connections_are_drained_and_new_ones_belong_to_the_new_code(program: Program, options: str) -> None:
    """One has a request in hand, one asks again while the old code drains, and one comes meanwhile."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key -out certificate -days 2"
    subprocess.run(command.split(), cwd=program.folder, check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=str(program.folder / "certificate"))

    def secured() -> ssl.SSLSocket:
        return trusting.wrap_socket(connect(program), server_hostname="localhost")

    program.deploy(answering(1, options))
    program.start()
    program.wait_until(lambda: any("address" in each for each in program.reports()), "an address")
    with secured() as in_hand, secured() as kept:
        kept.sendall(b"GET / HTTP/1.1\r\n\r\n")
        head, body = read_answer(kept)
        assert b"connection: close" not in head
        in_hand.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
        program.wait_report(asked=1, count=2)
        program.deploy(answering(2, options))
        program.hup()
        program.wait_report(ending=1, count=2 if "workers" in options else 1)
        with connect(program) as late:
            (program.folder / "go").touch()
            for client in (in_hand, kept):
                if client is kept:
                    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                head, body = read_answer(client)
                assert (b"connection: close" in head, body) == (True, b"1")
                assert client.recv(1) == b""
            with trusting.wrap_socket(late, server_hostname="localhost") as secured_late:
                secured_late.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert read_answer(secured_late)[1] == b"2"
    assert "Traceback" not in program.log()


@KINDS
@pytest.mark.parametrize("main", ["in_threads", "in_asyncio"])
def test_h57_what_was_accepted_and_not_yet_read_is_answered_by_who_has_accepted_it(
    program: Program, options: str, main: str
) -> None:
    """Some ask before the program is asked to end, some afterwards; some send more than the program ever reads."""
    patient = "from hotrestart.serving import keeping, streams\nkeeping._PATIENCE = streams._PATIENCE = 60.0\n"
    much = b"x" * 8_000_000  # more than buffers take
    requests = [b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(much), much)]
    errors: list[str] = []

    def send(number: int) -> None:
        try:
            clients[number].sendall(requests[number % 2])
        except OSError as error:
            errors.append(repr(error))

    unread = program.folder / "do not read"
    program.deploy(patient + answering(1, options, main))
    program.start()
    program.wait_until(lambda: any("address" in each for each in program.reports()), "an address")
    unread.touch()
    clients = [connect(program) for _ in range(8)]
    try:
        program.wait_report(accepted=1, count=8)
        senders = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for sender in senders[:4]:
            sender.start()
        program.deploy(answering(2, options, main))
        program.hup()
        program.wait_report(ending=1, count=2 if "workers" in options else 1)
        for sender in senders[4:]:
            sender.start()
        unread.unlink()
        for client in clients:
            said = read_to_the_end(client).lower()
            assert said.startswith(b"http/1.1 200 ok\r\n")
            assert b"connection: close" in said
            assert said.endswith(b"\r\n\r\n1")
        for sender in senders:
            sender.join()
    finally:
        for client in clients:
            client.close()
    assert errors == []
    assert "Traceback" not in program.log()


CLOSING = """
import asyncio, os, select, selectors, hotrestart
from hotrestart import serving

selector = selectors.EpollSelector()

def seen():
    with select.epoll.fromfd(os.dup(selector.fileno())) as epoll:
        return [fd for fd, _ in epoll.poll(0)]

async def handle(reader, writer):
    writer.write(b"%d" % hotrestart.state.generation)

async def main():
    listener = hotrestart.listen("127.0.0.1:0")
    with hotrestart.worker_loop(preflight=False) as around:
        report(ready=hotrestart.state.generation, address=listener.getsockname())
        async with hotrestart.worker_loop() as loop:
            if "IN THE BLOCK":
                await serving.serve_streams(handle, listener, loop)
        while around.running:
            await asyncio.sleep(0.005)
    listener.close()
    report(drains=hotrestart.state.generation)
    while not os.path.exists("go"):
        await asyncio.sleep(0.005)
    report(seen=seen())

events = asyncio.SelectorEventLoop(selector)
events.run_until_complete(main())
events.close()
"""


@pytest.mark.parametrize("in_the_block", ["", "serves"], ids=["before the end", "at the end"])
def test_h58_what_we_close_an_epoll_does_not_go_on_reporting(program: Program, in_the_block: str) -> None:
    """The pipe of the sleeper and the listener live on under other numbers, and both have something to read."""
    program.deploy(CLOSING.replace("IN THE BLOCK", in_the_block))
    program.start()
    address = program.wait_report(ready=1)["address"]
    program.hup()
    program.wait_report(drains=1)
    with socket.create_connection(tuple(address), 60) as waiting:  # type: ignore[arg-type]
        go(program.folder, "go")
        program.wait_report(ready=2)
        assert [each["seen"] for each in program.reports() if "seen" in each] == [[]]
        if in_the_block:
            assert waiting.recv(100) == b"2"


def test_h60_new_workers_that_had_accepted_work_finish_it_in_a_rollback(tmp_path: Path) -> None:
    with Rolling(tmp_path / "program") as program:
        program.launch(service())
        program.deploy(service(2, "workers=2, soak=60"))
        program.hup()
        program.wait_report(ready=True, version=2, count=2)
        with contextlib.ExitStack() as connections:
            asked: list[socket.socket] = []
            while not program.reports(job="hold gate", version=2):  # until one of the new ones takes the job
                asked.append(connections.enter_context(program.connect("hold gate")))
                program.wait_report(job="hold gate", count=len(asked))
            holder = int(str(program.reports(job="hold gate", version=2)[0]["pid"]))
            other = next(int(str(e["pid"])) for e in program.reports(ready=True, version=2) if e["pid"] != holder)
            program.kill(other)
            program.wait_log("generation 2 failed at stage soak")
            assert is_running(holder)
            go(program.folder, "gate")
            assert ("hold", "2", holder) in [answer_on(each) for each in asked]
        program.wait_until(lambda: not is_running(holder), "it drains")
        program.wait_report(drained="stop", version=2, pid=holder)
        assert program.ask()[1] == "1"
