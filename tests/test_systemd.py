"""Descriptors from systemd: taken once, by the process they are meant for, under their names."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotrestart import systemd

pytestmark = pytest.mark.core

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@pytest.fixture(autouse=True)
def none_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def passed(monkeypatch: pytest.MonkeyPatch, fds: str, names: str | None = None, pid: str | None = None) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid is None else pid)
    monkeypatch.setenv("LISTEN_FDS", fds)
    if names is not None:
        monkeypatch.setenv("LISTEN_FDNAMES", names)


def test_nothing_is_passed_without_the_variables() -> None:
    assert systemd.listen_fds() == []


def test_descriptors_begin_with_3_and_have_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, "2", "web:admin")
    assert systemd.listen_fds() == [(3, "web"), (4, "admin")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ["unknown", "unknown"]),
        ("", ["unknown", "unknown"]),
        ("a", ["a", "unknown"]),
        ("a:b:c", ["a", "b"]),
        (":b", ["", "b"]),
    ],
)
def test_a_missing_name_is_unknown(monkeypatch: pytest.MonkeyPatch, names: str | None, expected: list[str]) -> None:
    passed(monkeypatch, "2", names)
    assert [name for _, name in systemd.listen_fds()] == expected


def test_the_variables_are_removed_so_that_no_child_takes_them_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, "1", "web")
    assert systemd.listen_fds() == [(3, "web")]
    assert not set(VARIABLES) & set(os.environ)
    assert systemd.listen_fds() == []


def test_the_variables_can_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    passed(monkeypatch, "1", "web")
    assert systemd.listen_fds(unset=False) == [(3, "web")]
    assert systemd.listen_fds(unset=False) == [(3, "web")]


@pytest.mark.parametrize("pid", ["", "1x", "-1", "0", "99999999", "1 2"])
def test_descriptors_meant_for_another_process_are_left(monkeypatch: pytest.MonkeyPatch, pid: str) -> None:
    passed(monkeypatch, "1", pid=pid)
    assert systemd.listen_fds() == []


def test_a_pid_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert systemd.listen_fds() == []


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "0", " "])
def test_a_garbled_count_is_nothing(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    passed(monkeypatch, count)
    assert systemd.listen_fds() == []


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs", "Nd"]), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, TEXT, TEXT)
def test_garbage_in_the_variables_is_nothing(monkeypatch: pytest.MonkeyPatch, pid: str, count: str, names: str) -> None:
    for name, value in zip(VARIABLES, (pid, count, names), strict=True):
        monkeypatch.setenv(name, value)
    assert systemd.listen_fds() == []
    assert not set(VARIABLES) & set(os.environ)
