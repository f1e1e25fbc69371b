"""The command `top`: rates of real counters, once into a pipe, live in a real terminal, over a restart."""

import os
import re
import subprocess
import sys
import time
from codecs import getincrementaldecoder
from contextlib import ExitStack
from dataclasses import replace
from select import select

import pytest
from rich.console import Console

from engine.__main__ import main
from engine.command.remote import Door
from engine.command.top import Look, Watch, counts_of, rates_between
from engine.errors import BadSettings
from engine.server.key_file import add_key
from tests.engine.command.test_status import HELLO, QUIET
from tests.engine.server.conftest import modelled, running


@pytest.fixture(scope="module")
def served():
    with running(modelled(), QUIET) as found:
        yield found


def ask(found, times=1):
    with found.http() as client:
        for _ in range(times):
            answer = client.post("/v1/chat/completions", json=HELLO).raise_for_status()
    return answer.json()["usage"]


def shown(watch):
    """The page as a terminal of 160 columns has it."""
    console = Console(width=160)
    with console.capture() as captured:
        console.print(watch.page())
    return captured.get()


def test_rates_are_differences_of_counters_by_the_clock_of_the_server(served):
    door = Door(served.admin_url)
    ask(served)
    looks = []
    for _ in range(2):
        looks.append(Look(door.asked("GET", "/admin/status"), counts_of(door.text("/metrics"))))
        usage = ask(served, 5)
    passed_s = looks[1].at_s - looks[0].at_s
    rates = rates_between(*looks)
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert sorted(rates) == ["", "llama@1.0.0"]
    for each in rates.values():
        assert each.requests_per_s == pytest.approx(5 / passed_s)
        assert each.tokens_per_s == pytest.approx(15 / passed_s)
        assert each.hit_ratio == pytest.approx(cached / usage["prompt_tokens"])


def test_what_is_counted_begins_anew_with_the_server(served):
    door = Door(served.admin_url)
    look = Look(door.asked("GET", "/admin/status"), counts_of(door.text("/metrics")))
    before = Look({"uptime_s": look.at_s + 60}, {"llama@1.0.0": {"requests": 1e6}})
    assert rates_between(before, look) == {}


def test_the_page_has_the_rates_of_each_model_and_of_all(served):
    watch = Watch(Door(served.admin_url))
    watch.look()
    assert " requests/s, " not in shown(watch), "one look has nothing to compare with"
    ask(served, 3)
    watch.look()
    text = shown(watch)
    assert re.search(
        r"^[\d.,]+ requests/s, [\d,]+ tokens/s, \d+% of prompt tokens from the cache$", text, re.MULTILINE
    )
    assert re.search(r"llama@1.0.0 +healthy +1 +\d+ +6.4 MB +[1-9][\d.,]* +[1-9][\d,]* +\d+%", text)


def test_a_server_that_goes_and_comes_back_is_told_of():
    with running(modelled(), QUIET) as first:
        port = first.server.admin_port
        watch = Watch(Door(first.admin_url))
        watch.look()
        ask(first)
    watch.look()
    text = shown(watch)
    assert text.startswith(f"http://127.0.0.1:{port} does not answer: ")
    assert "trying again. This is what it said when it had been up for" in text
    assert "llama@1.0.0" in text
    with running(modelled(), replace(QUIET, admin_port=port)):
        watch.look()
        assert shown(watch).startswith("Modelyard ")


def test_metrics_of_a_large_fleet_are_asked_for_less_often(served, monkeypatch):
    monkeypatch.setattr("engine.command.top.CHEAP_BYTES", 4096)
    asked = []
    door = Door(served.admin_url)
    monkeypatch.setattr(Door, "text", lambda self, path: asked.append(path) or "x" * 8192)
    watch = Watch(door)
    for _ in range(6):
        watch.look()
    assert len(asked) == 2


def test_without_a_terminal_it_is_printed_once(served, capsys):
    assert main(["top", "--admin", served.admin_url, "--every", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Modelyard ")
    assert " requests/s, " in out
    assert "\x1b" not in out


def test_once_nobody_there_is_exit_code_1(unused_port, capsys):
    assert main(["top", "--once", "--every", "0.1", "--admin", f"http://127.0.0.1:{unused_port}"]) == 1
    assert capsys.readouterr().err.startswith(f"modelyard: http://127.0.0.1:{unused_port} does not answer: ")


def test_a_wrong_key_ends_it(tmp_path):
    file = tmp_path / "keys.jsonl"
    add_key(file, "ops", created="2026-01-01T00:00:00+00:00", admin=True)
    with (
        running(modelled(), replace(QUIET, keys_file=str(file))) as found,
        pytest.raises(BadSettings, match="key"),
    ):
        Watch(Door(found.admin_url, "my-wrong")).look()


SIZE = ("COLUMNS", "LINES")
"""What says how large a terminal is, and is believed more than the terminal."""


class Terminal:
    """A program in a terminal of 40 lines of 120 columns: what it has written, and keys for it."""

    def __init__(self, *arguments):
        pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
        self.at, other = pty.openpty()
        termios.tcsetwinsize(other, (40, 120))
        self.program = subprocess.Popen(
            [sys.executable, "-m", "engine", *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            env={
                **{name: each for name, each in os.environ.items() if name not in SIZE},
                "TERM": "xterm-256color",
            },
        )
        os.close(other)
        self.text, self.decoder = "", getincrementaldecoder("utf-8")()

    def __enter__(self):
        return self

    def until(self, words, within_s=30):
        """Read until it writes that; what it wrote until then is forgotten."""
        end_s = time.monotonic() + within_s
        while words not in self.text:
            ready, _, _ = select([self.at], [], [], max(0.0, end_s - time.monotonic()))
            assert ready, f"{words!r} is not in {self.text[-2000:]!r}"
            self.text += self.decoder.decode(os.read(self.at, 65_536))
        self.text = self.text.partition(words)[2]

    def type(self, key):
        os.write(self.at, key.encode())

    def __exit__(self, *_):
        self.program.kill()
        self.program.wait()
        os.close(self.at)


@pytest.mark.slow
def test_in_a_terminal_it_goes_on_over_a_restart_until_q():
    stack = ExitStack()
    with running(modelled(), QUIET) as first:
        port, url = first.server.admin_port, first.admin_url
        terminal = Terminal("top", "--admin", url, "--every", "0.2")
        stack.enter_context(terminal)
        terminal.until("Modelyard ")
        ask(first, 3)
        terminal.until("requests/s")
    with stack:
        terminal.until("trying again")
        stack.enter_context(running(modelled(), replace(QUIET, admin_port=port)))
        terminal.until("\x1b[HModelyard ")
        terminal.type("q")
        assert terminal.program.wait(60) == 0
        terminal.until("\x1b[?1049l")  # back to the screen of before
