"""Pages of the guide, typed as they stand there: each beside one server, in one folder, from top to bottom.

    <!-- file: NAME -->    the block is a file of that name
    <!-- serve -->         the block is typed in another terminal: a server, until the page is over
    <!-- test -->          the block is typed
    <!-- output -->        what the block before it prints, in this order; ... is anything; figures may differ
    <!-- output: exact -->    and may not

How lines are broken does not matter. Ports are others: 8000 and 8001 are the reader's.
What blocks export is there for those that follow.

    python -m tests.docs.pages PAGE.md    writes what is really printed into the outputs that are FILL
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from threading import Event
from urllib.request import urlopen

from tests.test_readme import COMMANDS, FIGURE

BLOCK = re.compile(
    r"^<!-- (?P<mark>test|serve|output(?P<exact>: exact)?|file: (?P<name>\S+)) -->\n+"
    r"```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SERVE = "python -m engine serve"
PUBLIC, ADMIN = 8000, 8001
FIRST_PORT, PORTS_OF_ONE = 20_000, 500  # below those that systems give out by themselves
HAPPENS = re.compile(r"(reset-\w+: |, up |\b(?:req|chatcmpl|cmpl)-)[\w.-]*(?: \w+ \d+ s| s)?")
READY_S, STOP_S = 120, 60
LAST_SAID = "operators: "  # by a server that has just become ready
MAX_JSON = 800
STATE = ".exported"


@dataclass
class Shell:
    """A folder, two ports, the servers that run there, and what was exported."""

    folder: Path
    port: int
    servers: list = field(default_factory=list)

    def type(self, text, language="bash"):
        """Exit code and what is printed, to either side."""
        text = self.moved(text)
        if language == "bash":
            text = f"test ! -e {STATE} || source {STATE}\n{text}\nexport -p > {STATE}"
        done = subprocess.run(
            [*COMMANDS[language], text],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def serve(self, text):
        """Start it and wait until it is ready; what it has printed by then."""
        ports = f" server.port={self.port} server.admin_port={self.port + 1}"
        text = (
            self.moved(text).strip().replace("&", f"{ports} &")
            if "&" in text
            else self.moved(text).strip() + ports
        )
        log = self.folder / "server.log"
        with log.open("w") as out:
            program = subprocess.Popen(
                [*COMMANDS["bash"], text],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.servers.append(program)
        for _ in range(READY_S * 20):
            if self._is_ready() and LAST_SAID in (told := log.read_text()):
                return told
            assert program.poll() in (None, 0), log.read_text()
            Event().wait(0.05)
        raise AssertionError(f"not ready after {READY_S} s: {log.read_text()}")

    def stop(self):
        for program in self.servers:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(program.pid, number)
                except ProcessLookupError:
                    break
                self._gone(program)
            program.wait(STOP_S)

    @property
    def env(self):
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": tools, "MODELYARD_ADMIN": f"http://127.0.0.1:{self.port + 1}"}

    def moved(self, text):
        """The same with the ports of this shell."""
        return text.replace(f":{PUBLIC}", f":{self.port}").replace(f":{ADMIN}", f":{self.port + 1}")

    def _is_ready(self):
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    @staticmethod
    def _gone(program):
        for _ in range(STOP_S * 20):
            program.poll()
            try:
                os.killpg(program.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            Event().wait(0.05)


@contextmanager
def shell(folder):
    made = Shell(folder, free_port())
    try:
        yield made
    finally:
        made.stop()


def free_port():
    """The first of two that nobody uses. Workers that run beside each other look at different ones."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw20").removeprefix("gw"))
    first = FIRST_PORT + worker * PORTS_OF_ONE
    for port in range(first, first + PORTS_OF_ONE, 2):
        with socket() as one, socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError(f"all ports from {first} on are taken")


def play(page, shell):
    """Type a page; what is wrong with it, the first thing first."""
    markdown, printed, line = page.read_text("utf-8"), None, 0
    for match in BLOCK.finditer(markdown):
        mark, text = match["mark"], match["text"]
        if mark.startswith("output"):
            missing = missing_from(printed, text, is_exact=match["exact"] is not None)
            if missing is not None:
                return f"{page.name}, line {line}: not printed: {missing}\n{printed}"
            continue
        line = markdown.count("\n", 0, match.start()) + 1
        if match["name"]:
            (shell.folder / match["name"]).write_text(shell.moved(text), "utf-8")
        elif mark == "serve":
            printed = shell.serve(text)
        else:
            code, printed = shell.type(text, match["language"])
            if code:
                return f"{page.name}, line {line}: exit code {code}\n{printed}"
    return None


def missing_from(printed, expected, *, is_exact=False):
    """The first piece of what should be printed that is not, or not where it should be; None if all is."""
    rest = closed(printed, is_exact)
    for number, piece in enumerate(expected.split("...")):
        wanted = closed(piece, is_exact)
        at = rest.find(wanted)
        if at < 0 or (number == 0 and at > 0):
            return piece
        rest = rest[at + len(wanted) :]
    return None if expected.rstrip().endswith("...") or not rest else rest


def closed(text, is_exact):
    """Without blanks and rules, and unless it `is_exact` with every figure the same."""
    return re.sub(r"[\s─]+", "", text if is_exact else FIGURE.sub("#", text))


def filled(page, shell):
    """The page, with what is really printed in its outputs that are FILL."""
    markdown, printed = page.read_text("utf-8"), ""

    def fill(match):
        nonlocal printed
        mark, text = match["mark"], match["text"]
        if match["name"]:
            (shell.folder / match["name"]).write_text(shell.moved(text), "utf-8")
        elif mark == "serve":
            printed = shell.serve(text)
        elif mark == "test":
            code, printed = shell.type(text, match["language"])
            sys.stderr.write(f"$ {text}{printed}-> {code}\n")
        elif text.strip() == "FILL":
            home = re.sub(HAPPENS, r"\1...", printed)
            home = home.replace(f":{shell.port}", f":{PUBLIC}").replace(f":{shell.port + 1}", f":{ADMIN}")
            return match[0].replace("FILL\n", broken(home.replace(str(shell.folder), "...")))
        return match[0]

    return BLOCK.sub(fill, markdown)


def broken(text):
    """Long lines of JSON on several."""
    return "".join(
        f"{each}\n"
        for line in text.splitlines()
        for each in (
            textwrap.wrap(
                short(re.sub(r"(?<!\d),(?=\S)|,(?=[^\s\d])", ", ", line)),
                108,
                subsequent_indent=" ",
                break_long_words=False,
            )
            if line.startswith(("{", "[", '"'))
            else [line.rstrip()]
        )
    )


def short(line):
    """What is too long for a page ends with what may be anything."""
    return line if len(line) < MAX_JSON else f"{line[: line.rindex(', ', 0, MAX_JSON)]}, ..."


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made, shell(Path(made)) as opened:
        path = Path(sys.argv[1])
        text = filled(path, opened)
    path.write_text(text, "utf-8")
