"""What README.md and docs/ tell the reader to type works, and prints what they say it prints.

A block after `<!-- test -->` is run; a `text` block after `<!-- output -->` behind it is what it prints. A `text`
block after `<!-- output: COMMAND -->` is what that command prints, which the document shows in another form. The
blocks of one document run in their order in one folder. Figures may differ, words may not. Runs are without pictures,
which take longer than all the rest: the README's first command, which `.ci/run` plays as it stands, draws them.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>test|output)(?:: (?P<command>.+))? -->\n+)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
FIGURE = re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b|\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
RUN = re.compile(r"\bpython -m sim (?:-m )?(?!.*\breport=)")
TABLES = r"\g<0>report=tables "
COMMANDS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@dataclass
class Block:
    """A block that is run, the line at which it stands, and the lines that it should print."""

    language: str
    text: str
    line: int
    expected: list[str]


def blocks(markdown):
    found, before = [], None
    for match in BLOCK.finditer(markdown):
        line = markdown.count("\n", 0, match.start()) + 1
        if match["mark"] == "test":
            before = Block(match["language"], match["text"], line, [])
            found.append(before)
        elif match["command"]:
            found.append(Block("bash", match["command"], line, match["text"].splitlines()))
        elif match["mark"] == "output":
            assert before is not None, f"line {line}: this output follows no tested block"
            before.expected, before = match["text"].splitlines(), None
        else:
            before = None
    return found


def words(line):
    """The line with every figure replaced and its columns closed up."""
    return " ".join(FIGURE.sub("#", line).split())


def run(block, folder):
    """What is wrong with the block; nothing when it does what the document says."""
    done = subprocess.run(
        [*COMMANDS[block.language], RUN.sub(TABLES, block.text)],
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return [
            f"line {block.line}: exit code {done.returncode}",
            *done.stdout.splitlines(),
            *done.stderr.splitlines(),
        ]
    printed = {words(line) for line in (done.stdout + done.stderr).splitlines()}
    return [
        f"line {block.line}: not printed: {line}"
        for line in block.expected
        if words(line) not in printed | {""}
    ]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_the_document_says_is_so(document, tmp_path):
    for block in blocks(document.read_text()):
        wrong = run(block, tmp_path)
        assert not wrong, "\n".join([f"{document.name}, {wrong[0]}", *wrong[1:]])


def test_the_readme_has_a_tested_block_once_it_names_the_command():
    text = README.read_text()
    assert blocks(text) or "sim scenario=failover" not in text


SAMPLE = """
```bash
exit 1
```
<!-- test -->
```bash
echo "pass   p99 E2E, s   1.234 <= 5   n=10"; echo "digest  0a1b2c3d4e5f"
```
It prints

<!-- output -->
```text
pass  p99 E2E, s  0.9 <= 5  n=8

digest  ffffffff00000000
```
<!-- test -->
```python
raise SystemExit(3)
```
<!-- output: echo 12 requests -->
```text
200 requests
```
"""


def test_marked_blocks_are_found_with_their_output():
    bash, python, other = blocks(SAMPLE)
    assert bash.line == 5
    assert len(bash.expected) == 3
    assert python.expected == []
    assert (other.text, other.expected) == ("echo 12 requests", ["200 requests"])


@pytest.mark.parametrize(
    ("typed", "played"),
    [
        ("python -m sim scenario=x || test $? = 1", "python -m sim report=tables scenario=x || test $? = 1"),
        ("python -m sim -m seed=1,2", "python -m sim -m report=tables seed=1,2"),
        ("python -m sim -m seed=1,2 report=full", "python -m sim -m seed=1,2 report=full"),
        ("python -m sim.regret scenario=x", "python -m sim.regret scenario=x"),
    ],
)
def test_runs_are_without_pictures_unless_the_document_asks_for_them(typed, played):
    assert RUN.sub(TABLES, typed) == played


def test_a_figure_may_differ_a_word_or_an_exit_code_may_not(tmp_path):
    bash, python, other = blocks(SAMPLE)
    assert run(bash, tmp_path) == run(other, tmp_path) == []
    assert run(python, tmp_path)[0] == "line 17: exit code 3"
    bash.expected[0] = bash.expected[0].replace("pass", "fail")
    assert run(bash, tmp_path) == ["line 5: not printed: fail  p99 E2E, s  0.9 <= 5  n=8"]
