"""A program that moves to another interpreter or another hotrestart, and its supervisor, which goes along by an exec of
its own: at any moment, with whatever is asked for or goes wrong meanwhile."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import CHECKOUT, PATIENCE, copy_library
from tests.recipes.conftest import held_port
from tests.recipes.load import Load
from tests.rolling.programs import Rolling, Traffic, answer_on, described, is_running, service

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"

MARK = """
if "supervisor of" in sys.argv:
    import hotrestart
    os.write(2, f"this supervisor is of {hotrestart.__version__}\\n".encode())
    while os.path.exists("wait"):
        __import__("time").sleep(0.005)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        yield each


def other_interpreter() -> tuple[str, Path]:
    """The newest supported Python that is not this one: its version as "3.x", and its file."""
    pythons = [*(Path.home() / ".pyenv/versions").glob("3.*/bin/python")]
    pythons += [Path(found) for minor in range(10, 15) if (found := shutil.which(f"python3.{minor}"))]
    found: dict[int, Path] = {}
    for python in pythons:
        ask = [str(python), "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
        version = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
        if re.fullmatch(r"3\.1\d", version) and version != THIS:
            found.setdefault(int(version[2:]), python.resolve())
    if not found:
        pytest.skip("there is only one supported Python here")
    return f"3.{max(found)}", found[max(found)]


def switch(link: Path, target: str) -> None:
    """Let a symlink lead elsewhere, atomically."""
    new = link.with_name(f".{link.name}.new")
    new.symlink_to(target)
    new.replace(link)


class Virtualenvs:
    """A program that was started with the interpreter of `venv`, a symlink to one of two virtualenvs."""

    def __init__(self, program: Rolling) -> None:
        self.program = program
        version, other = other_interpreter()
        self.versions = {"old": THIS, "new": version}
        self.files = {"old": Path(sys.executable).resolve(), "new": other}
        for name, python in self.files.items():
            subprocess.run([python, "-m", "venv", "--without-pip", program.folder / name], check=True)
        self.link = program.folder / "venv"
        switch(self.link, "old")
        program.python = str(self.link / "bin/python")

    def wait_moved(self, name: str, *, timeout: float = PATIENCE) -> None:
        """Wait until the whole tree, the supervisor too, is of this one's interpreter, and nothing of the other's is
        mapped anywhere."""
        other = self.files["old" if name == "new" else "new"]
        home = str(other.parent.parent) + "/"

        def is_clean() -> bool:
            for pid in self.program.members():
                try:
                    exe = os.readlink(f"/proc/{pid}/exe")
                    maps = Path(f"/proc/{pid}/maps").read_text()
                except OSError:
                    return False
                if exe.removesuffix(" (deleted)") != str(self.files[name]) or home in maps:
                    return False
            return True

        self.program.wait_until(is_clean, f"nothing but {name} is left", timeout)


@pytest.fixture
def virtualenvs(program: Rolling) -> Virtualenvs:
    return Virtualenvs(program)


class Libraries:
    """A program that finds hotrestart by `lib`, a symlink to one of several copies of it; each says its name."""

    def __init__(self, program: Rolling) -> None:
        self.program = program
        self.link = program.folder / "lib"
        for name in ("1.0", "2.0"):
            self.copy(name)
        switch(self.link, "1.0")
        self.env = {"PYTHONPATH": str(self.link)}

    def copy(self, name: str, **constants: object) -> None:
        """Another copy, with this version, and with other values of constants in its files."""
        package = copy_library(self.program.folder / name)
        edit(package / "__init__.py", r"__version__ = .*", f'__version__ = "{name}"')
        bare = package / "rolling/bare.py"
        bare.write_text(bare.read_text() + MARK)
        for where, value in constants.items():
            file, _, constant = where.rpartition("__")
            edit(package / f"{file.replace('__', '/')}.py", rf"(?m)^{constant} = .*", f"{constant} = {value!r}")

    def use(self, name: str) -> None:
        switch(self.link, name)

    def current(self) -> str:
        return os.readlink(self.link)

    def launch(self, *arguments: object, **more: object) -> None:
        options = str(more.get("options", "workers=2"))
        self.program.launch(service(**more), ready=int(options.split("workers=")[1][0]), env=self.env)  # type: ignore[arg-type]

    def move(self, source: str, *, expect: int) -> None:
        """Reload with the other copy, and wait until the supervisor is of it."""
        self.flip()
        moves = self.moves()
        self.program.reload(source, expect=expect)
        self.wait_moved(moves + 1)

    def flip(self) -> None:
        self.use("2.0" if self.current() == "1.0" else "1.0")

    def moves(self) -> int:
        return len(self.supervisors())

    def supervisors(self) -> list[str]:
        """The versions of all that there have been."""
        return re.findall(r"this supervisor is of (\S+)", self.program.log())

    def wait_moved(self, count: int) -> None:
        self.program.wait_log("this supervisor is of", count=count)
        assert self.supervisors()[-1] == self.current()


def edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, lambda _: replacement, path.read_text())
    assert count == 1, (path, pattern)
    path.write_text(text)


@pytest.fixture
def libraries(program: Rolling) -> Libraries:
    return Libraries(program)


def a_random_moment(most: float) -> None:
    """Let some time pass: every moment is fine, and they are to be different ones."""
    time.sleep(random.uniform(0, most))


# -- another interpreter -------------------------------------------------------------------------------------------


def http_server(version: int) -> str:
    """It answers with its version, to new and to kept connections, and has much of the interpreter's mapped."""
    source = (CHECKOUT / "tests/apps/http_threads.py").read_text()
    return source.replace("VERSION = 0\n", f"VERSION = {version}\nimport decimal, ssl, sqlite3\n")


def test_a_program_moves_to_another_python_and_back_under_load(program: Rolling, virtualenvs: Virtualenvs) -> None:
    program.deploy(http_server(1))
    with held_port() as port:
        program.start("app.py", f"127.0.0.1:{port}")
        program.wait_log("generation 1 serves")
        pid = program.pid
        with Load(port) as load:
            load.wait_for(program, 1, alone=True)
            for generation, name in ((2, "new"), (3, "old"), (4, "new")):
                switch(virtualenvs.link, name)
                program.reload(http_server(generation), expect=generation)
                virtualenvs.wait_moved(name)
                load.wait_for(program, generation, alone=True)
        load.check(4)
        assert program.pid == pid
        assert program.log().count("the supervisor moves to") == 3
        program.wait_until(lambda: len(program.members()) == 4, "supervisor, fork server, two workers")
        program.assert_no_zombie()
        assert program.stop() == 0


def test_what_is_told_of_the_python_and_the_generation_is_true_after_a_move(
    program: Rolling, virtualenvs: Virtualenvs
) -> None:
    program.launch(service())
    switch(virtualenvs.link, "new")
    program.reload(service(2), expect=2)
    virtualenvs.wait_moved("new")
    assert program.evaluate("'%d.%d' % sys.version_info[:2]") == virtualenvs.versions["new"]
    assert program.evaluate("state.generation") == "2"
    first, *more = program.told("address")
    assert all(each == first for each in more)


def test_an_interpreter_that_was_replaced_by_another_file_of_the_same_path_is_another(
    program: Rolling, virtualenvs: Virtualenvs
) -> None:
    """As the upgrade of a system's Python does it: the old file is deleted while it runs."""
    copies = program.folder / "copies"
    copies.mkdir()
    python = copies / "python"
    shutil.copy2(virtualenvs.files["old"], python)
    for link in (program.folder / "old/bin").iterdir():
        if link.is_symlink() and os.readlink(link).startswith("/"):
            switch(link, str(python))
    program.launch(service())
    shutil.copy2(virtualenvs.files["old"], copies / "new")
    (copies / "new").replace(python)
    with Traffic(program):
        program.reload(service(2), expect=2)
        program.wait_log("the supervisor moves to")
        program.wait_until(
            lambda: all(readlink(f"/proc/{pid}/exe") == str(python) for pid in program.members()), "no deleted file"
        )
    assert program.ask()[1] == "2"


def readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def test_an_address_that_nobody_wants_any_more_delays_the_move_and_no_more(
    program: Rolling, virtualenvs: Virtualenvs
) -> None:
    program.launch(service(top="bound = hotrestart.listen('127.0.0.1:0', name='early')"))
    switch(virtualenvs.link, "new")
    with Traffic(program):
        program.reload(service(2), expect=2)
        virtualenvs.wait_moved("new")
    assert program.ask()[1] == "2"


@pytest.mark.parametrize("how", ["deleted", "not executable", "no program", "a loop of links"])
def test_an_exec_that_fails_leaves_a_supervisor_that_works(
    program: Rolling, virtualenvs: Virtualenvs, how: str
) -> None:
    """The interpreter of the new generation is gone when the supervisor, which has waited for an old job, follows."""
    program.launch(service())
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        switch(virtualenvs.link, "new")
        program.reload(service(2), expect=2)
        python = program.folder / "new/bin/python"
        python.unlink()
        if how == "not executable":
            python.write_bytes(b"\x7fELF")
        elif how == "no program":
            python.write_bytes(b"nothing that runs")
            python.chmod(0o755)
        elif how == "a loop of links":
            python.symlink_to("python")
        with Traffic(program):
            (program.folder / "gate").touch()
            assert answer_on(connection)[0] == "hold"
            program.wait_log("the supervisor stays what it is")
            workers = program.wait_workers(2, version=2)
    victim = workers.pop()
    program.kill(victim)
    program.wait_workers(2, version=2, without={victim})  # from the memory of the fork server
    program.deploy(service(3))
    program.hup()
    program.wait_log("generation 3 failed at stage load")
    assert program.ask()[1] == "2"
    switch(virtualenvs.link, "old")
    program.reload(expect=4)
    program.wait_workers(2, version=3)


def test_after_an_exec_that_failed_the_next_generation_is_followed(program: Rolling, virtualenvs: Virtualenvs) -> None:
    program.launch(service())
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        switch(virtualenvs.link, "new")
        program.reload(service(2), expect=2)
        python = program.folder / "new/bin/python"
        python.unlink()
        python.symlink_to("python")
        (program.folder / "gate").touch()
        assert answer_on(connection)[0] == "hold"
        program.wait_log("the supervisor stays what it is")
    switch(python, str(virtualenvs.files["new"]))
    program.reload(service(3), expect=3)
    virtualenvs.wait_moved("new")


@pytest.mark.parametrize("how", ["is not there", "does not load", "ends the process"])
def test_a_supervisor_whose_new_library_does_not_load_stays_where_it_is(
    program: Rolling, libraries: Libraries, how: str
) -> None:
    """A deploy takes it away again, or has not finished, while the supervisor waits for an old job."""
    libraries.launch()
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        libraries.use("2.0")
        program.reload(service(2), expect=2)
        package = program.folder / "2.0/hotrestart"
        if how == "is not there":
            package.rename(package.with_name("away"))
        else:
            with (package / "rolling/bare.py").open("a") as file:
                file.write("1 / 0" if how == "does not load" else "os._exit(0)")
        with Traffic(program):
            (program.folder / "gate").touch()
            assert answer_on(connection)[0] == "hold"
            program.wait_log("the supervisor stays what it is")
            program.wait_workers(2, version=2)
        if how == "is not there":
            package.with_name("away").rename(package)
    assert libraries.supervisors() == ["1.0"]
    program.reload(service(3), expect=3)
    program.wait_workers(2, version=3)
    if how == "is not there":
        libraries.wait_moved(2)


def hang(package: Path) -> None:
    """Let the supervisor's code never come to its end."""
    with (package / "rolling/bare.py").open("a") as file:
        file.write("__import__('time').sleep(1000)")


def rehearsals(program: Rolling) -> list[int]:
    """The processes that rehearse a move just now."""
    return [pid for pid in program.members() if pid != program.pid and "hotrestart.rolling.bare" in described(pid)]


def test_a_supervisor_whose_new_library_hangs_as_it_is_loaded_stays_where_it_is_and_says_so(
    program: Rolling, libraries: Libraries
) -> None:
    edit(program.folder / "1.0/hotrestart/rolling/rehearsal.py", "(?m)^_PATIENCE = .*", "_PATIENCE = 0.5")
    libraries.launch()
    hang(program.folder / "2.0/hotrestart")
    libraries.use("2.0")
    with Traffic(program):
        program.reload(service(2), expect=2)
        program.wait_log("the supervisor stays what it is")
    assert "hotrestart does not load there within 0.5 s" in program.log()
    program.wait_until(lambda: not rehearsals(program), "the child is gone")
    program.assert_no_zombie()
    libraries.use("1.0")
    program.reload(service(3), expect=3)
    assert libraries.supervisors() == ["1.0"]


def test_a_stop_leaves_no_rehearsal_behind(program: Rolling, libraries: Libraries) -> None:
    libraries.launch()
    hang(program.folder / "2.0/hotrestart")
    libraries.use("2.0")
    program.reload(service(2), expect=2)
    program.wait_until(lambda: rehearsals(program), "the rehearsal")
    assert program.stop() == 0
    program.wait_gone()


# -- another version of the library --------------------------------------------------------------------------------


def test_another_version_of_hotrestart_makes_the_supervisor_move(program: Rolling, libraries: Libraries) -> None:
    libraries.launch()
    assert "this supervisor is of 1.0" in program.wait_log("this supervisor is of")
    with Traffic(program):
        libraries.move(service(2), expect=2)
        libraries.move(service(3), expect=3)
    program.reload(service(4), expect=4)
    program.wait_workers(2, version=4)
    assert libraries.moves() == 3  # not for the same version


def test_the_old_version_may_be_deleted_at_once(program: Rolling, libraries: Libraries) -> None:
    """Whatever the old supervisor has not imported by then it need not import any more."""
    libraries.launch()
    libraries.use("2.0")
    shutil.rmtree(program.folder / "1.0")
    with Traffic(program):
        program.reload(service(2), expect=2)
        libraries.wait_moved(2)
    assert program.ask()[1] == "2"


def test_a_version_that_speaks_another_protocol_is_refused_with_its_reason(
    program: Rolling, libraries: Libraries
) -> None:
    libraries.launch()
    libraries.copy("3.0", rolling__lifeline__PROTOCOL=99)
    libraries.use("3.0")
    with Traffic(program) as traffic:
        program.deploy(service(2))
        program.hup()
        log = program.wait_log("generation 2 failed at stage load")
        assert "hotrestart 3.0 speaks protocol 99, this supervisor speaks 1" in log
        libraries.use("2.0")
        program.reload(service(3), expect=3)
        libraries.wait_moved(2)
    assert traffic.versions() <= {"1", "3"}
    assert not program.reports(ready=True, version=2)


def test_a_version_with_another_format_of_the_inheritance_is_refused_with_its_reason(
    program: Rolling, libraries: Libraries
) -> None:
    libraries.launch()
    libraries.copy("3.0", inheritance__FORMAT=99)
    libraries.use("3.0")
    with Traffic(program):
        program.deploy(service(2))
        program.hup()
        log = program.wait_log("generation 2 failed at stage load")
        assert "another version of hotrestart" in log.split("generation 2 failed at stage load")[1].split("\n")[0]
        libraries.use("2.0")
        program.reload(service(3), expect=3)
        libraries.wait_moved(2)
    assert not program.reports(ready=True, version=2)


# -- what comes in the midst of the move ---------------------------------------------------------------------------


def begin_to_move(program: Rolling, libraries: Libraries, number: int) -> None:
    """Reload with the other copy; return at some moment from the commit on, in the midst of the move or near it."""
    program.wait_until(lambda: libraries.supervisors()[-1:] == [libraries.current()], "the last move")
    libraries.flip()
    moves = program.log().count("the supervisor moves to")
    program.reload(service(number), expect=number)
    if random.random() < 0.7:
        program.wait_log("the supervisor moves to", count=moves + 1)
    a_random_moment(0.15)


def test_a_hup_in_the_midst_of_the_move_is_not_lost(program: Rolling, libraries: Libraries, full: bool) -> None:
    libraries.launch()
    number = 1
    with Traffic(program):
        for _ in range(60 if full else 5):
            begin_to_move(program, libraries, number + 1)
            number += 2
            program.deploy(service(number))
            program.hup()
            program.wait_log(f"generation {number} serves")
            program.wait_workers(2, version=number)
    assert sorted({int(str(each)) for each in program.told("generation")}) == list(range(1, number + 1))
    program.assert_no_zombie()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_an_end_asked_for_in_the_midst_of_the_move_comes(tmp_path: Path, number: str, full: bool) -> None:
    for turn in range(20 if full else 2):
        with Rolling(tmp_path / f"program-{turn}") as program:
            libraries = Libraries(program)
            libraries.launch()
            begin_to_move(program, libraries, 2)
            os.kill(program.pid, getattr(signal, number))
            status = program.wait_exit()
            program.wait_gone()
            if number != "SIGQUIT":
                assert status == 0
                assert len(program.reports(drained="stop", version=2)) == 2
            shutil.rmtree(program.folder / "1.0")


def test_what_workers_ask_for_in_the_midst_of_the_move_is_not_lost(
    program: Rolling, libraries: Libraries, full: bool
) -> None:
    libraries.launch()
    number = 1
    for turn in range(30 if full else 4):
        begin_to_move(program, libraries, number + 1)
        number += 1
        program.wait_workers(2, version=number)
        if turn % 2:
            bind = f"other = hotrestart.listen('unix:' + os.path.abspath('other-{turn}'))"
            assert program.ask(f"exec {bind}; told(bound={turn})")[0] == "exec"
            program.wait_report(bound=turn)
        else:
            program.deploy(service(number + 1))
            program.ask("exec hotrestart.request_restart()")
            number += 1
            program.wait_log(f"generation {number} serves")
        program.wait_until(lambda: program.ask()[1] == str(number), "the newest code")  # noqa: B023


@pytest.mark.parametrize("whom", ["a worker", "the fork server", "all"])
def test_a_death_in_the_midst_of_the_move_is_made_good(
    program: Rolling, libraries: Libraries, whom: str, full: bool
) -> None:
    libraries.launch()
    for number in range(2, 22 if full else 6):
        moves = libraries.moves()
        begin_to_move(program, libraries, number)
        there = {int(str(each["pid"])) for each in program.reports(ready=True, version=number)}
        workers = {pid for pid in there if is_running(pid)}
        servers = {int(parent_of(pid)) for pid in workers} - {program.pid}
        victims = {"a worker": set(list(workers)[:1]), "the fork server": servers, "all": workers | servers}[whom]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        program.wait_until(lambda: not any(is_running(pid) for pid in victims), "they are dead")  # noqa: B023
        libraries.wait_moved(moves + 1)
        program.wait_until(lambda: len(program.members()) == 4, "all are there")
        program.wait_until(lambda: len(program.servers()) in (1, 3), "a fork server")
        assert program.ask()[1] == str(number)
        program.assert_no_zombie()


def test_a_child_that_ends_in_the_midst_of_the_move_is_reaped(program: Rolling, libraries: Libraries) -> None:
    """One that the program has started before main(): its SIGCHLD comes when nobody has a handler for it."""
    libraries.launch(top="import subprocess; told(child=subprocess.Popen(['sleep', '1000']).pid)")
    child = program.told("child")[0]
    (program.folder / "wait").touch()
    libraries.flip()
    program.reload(service(2), expect=2)
    libraries.wait_moved(2)
    os.kill(child, signal.SIGKILL)
    program.wait_until(lambda: not is_running(child), "it is dead")
    (program.folder / "wait").unlink()
    program.wait_until(lambda: not Path(f"/proc/{child}").exists(), "it is reaped")


def parent_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return "0"


# -- what goes along -----------------------------------------------------------------------------------------------


def test_extra_workers_go_along(program: Rolling, libraries: Libraries) -> None:
    libraries.launch()
    os.kill(program.pid, signal.SIGTTIN)
    program.wait_workers(3)
    libraries.move(service(2), expect=2)
    workers = program.wait_workers(3, version=2)
    victim = workers.pop()
    program.kill(victim)
    program.wait_workers(3, version=2, without={victim})
    os.kill(program.pid, signal.SIGTTOU)
    program.wait_workers(2, version=2)
    program.reload(service(3), expect=3)
    program.wait_workers(2, version=3)


def test_all_listeners_go_along(program: Rolling, libraries: Libraries) -> None:
    top = (
        "more = [hotrestart.listen('127.0.0.1:0', name='more'), hotrestart.listen('udp:127.0.0.1:0', name='udp'),"
        " hotrestart.listen('unix:' + os.path.abspath('unix.sock'))];"
        " told(all=[each.getsockname() for each in more])"
    )
    libraries.launch(top=top)
    before = sockets_of(program.pid)
    libraries.move(service(2, top=top), expect=2)
    libraries.move(service(3, top=top), expect=3)
    assert len(program.told("all")) == 3
    assert all(each == program.told("all")[0] for each in program.told("all"))
    assert len(before & sockets_of(program.pid)) >= 4  # the very same sockets, and that of the service
    assert len({tuple(each) for each in program.told("address")}) == 1


def sockets_of(pid: int) -> set[str]:
    links = {readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    return {link for link in links if link.startswith("socket:")}


def test_beats_go_along(program: Rolling, libraries: Libraries) -> None:
    """A worker that hangs from before the move on, and one that hangs after it, are noticed; one that sleeps is not."""
    options = "workers=3, timeout=3, grace=3"
    libraries.launch(options="workers=3, timeout=600, grace=600")  # what is told to this one comes when it comes
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        libraries.flip()
        program.reload(service(2, options), expect=2)
        program.wait_report(drained="stop", version=1, count=2)
        hanging = program.connect("busy")
        program.wait_report(job="busy", version=2)
        (program.folder / "gate").touch()
        assert answer_on(connection)[1] == "1"
    with hanging:
        libraries.wait_moved(2)
        program.wait_log("no turn of its loop for 3 s; aborting it")
        hung = program.wait_report(job="busy")["pid"]
        program.wait_report(ready=True, version=2, count=4)
    with program.connect("busy"):
        program.wait_log("no turn of its loop for 3 s; aborting it", count=2)
        program.wait_report(ready=True, version=2, count=5)
    assert not is_running(int(str(hung)))
    assert program.log().count("aborting it") == 2
    assert program.ask()[1] == "2"


def test_the_jobs_in_hand_are_finished_when_it_is_stopped_after_the_move(
    program: Rolling, libraries: Libraries
) -> None:
    libraries.launch()
    libraries.flip()
    program.reload(service(2), expect=2)
    program.wait_report(drained="stop", version=1, count=2)
    with program.connect("hold gate") as connection:
        holder = program.wait_report(job="hold gate", version=2)["pid"]
        libraries.wait_moved(2)
        program.term()
        program.wait_report(drained="stop", version=2)
        (program.folder / "gate").touch()
        assert answer_on(connection) == ("hold", "2", holder)
    assert program.wait_exit() == 0


def test_the_grace_is_kept_after_the_move(program: Rolling, libraries: Libraries) -> None:
    libraries.launch(options="workers=2, grace=0.5")
    libraries.move(service(2, "workers=2, grace=0.5"), expect=2)
    with program.connect("busy"):
        program.wait_report(job="busy")
        program.reload(service(3), expect=3)
        program.wait_log("it does not end; aborting it")
    program.wait_workers(2, version=3)


def test_the_status_of_a_worker_is_told_after_the_move(program: Rolling, libraries: Libraries) -> None:
    libraries.launch()
    libraries.move(service(2), expect=2)
    with pytest.raises(OSError):
        program.ask("exec os._exit(3)")
    program.wait_log("ended with status 3")
    program.wait_report(ready=True, version=2, count=3)


def test_max_jobs_and_crash_loops_are_minded_after_the_move(program: Rolling, libraries: Libraries) -> None:
    options = "workers=2, max_jobs=20, jitter=0"
    libraries.launch(options=options)
    libraries.move(service(2, options), expect=2)
    first = program.wait_workers(2, version=2)
    with Traffic(program):
        program.wait_until(lambda: not first & set(program.workers()), "both are replaced")


def test_numbers_go_on_after_the_move_also_over_those_that_were_refused(program: Rolling, libraries: Libraries) -> None:
    libraries.launch()
    program.deploy("import missing_module")
    for _ in range(2):
        program.hup()
        program.wait_until(lambda: program.log().count("failed at stage load") == _ + 1, "it is refused")  # noqa: B023
    libraries.move(service(4), expect=4)
    program.deploy("import missing_module")
    program.hup()
    program.wait_log("generation 5 failed at stage load")
    libraries.flip()
    program.reload(service(6), expect=6)
    program.wait_workers(2, version=6)
    assert program.evaluate("state.generation") == "6"
    libraries.wait_moved(3)


def test_a_number_that_was_refused_right_before_the_move_is_not_given_again(
    program: Rolling, libraries: Libraries
) -> None:
    libraries.launch()
    with program.connect("hold gate") as connection:
        program.wait_report(job="hold gate")
        libraries.flip()
        program.reload(service(2), expect=2)
        program.deploy("import missing_module")
        program.hup()
        program.wait_log("generation 3 failed at stage load")
        (program.folder / "gate").touch()
        assert answer_on(connection)[1] == "1"
    libraries.wait_moved(2)
    program.reload(service(4), expect=4)


def test_without_preload_the_workers_themselves_go_along(program: Rolling, libraries: Libraries) -> None:
    options = "workers=2, preload=False"
    libraries.launch(options=options)
    with Traffic(program):
        libraries.move(service(2, options), expect=2)
    victim = program.servers()[0]
    program.kill(victim)
    program.wait_report(ready=True, version=2, count=3)
    program.wait_until(lambda: len(program.servers()) == 2, "two again")
    libraries.move(service(3), expect=3)
    program.wait_workers(2, version=3)
    program.assert_no_zombie()


def test_moves_leave_nothing_behind(program: Rolling, libraries: Libraries) -> None:
    libraries.launch()
    fds = Path(f"/proc/{program.pid}/fd")
    most = len(os.listdir(fds)) + 1  # the first fork server has no relay
    for number in range(2, 12):
        libraries.move(service(number), expect=number)
        program.wait_until(lambda: len(program.members()) == 4, "the old generation ends")
        program.wait_until(lambda: len(os.listdir(fds)) <= most, "no more descriptors than at first")
    assert len(Path(f"/proc/{program.pid}/environ").read_bytes()) < 20_000 + len(str(os.environ))
