"""Every notebook runs from its first cell to its last, is small, and is committed as it ran."""

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MOST_CODE_LINES = 60
MOST_BYTES = 150_000
MACHINE_PATH = re.compile(r"/(?:home|root|tmp|var|opt|mnt|work|Users)/")

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell.outputs]


def test_there_are_notebooks():
    assert NOTEBOOKS


@notebooks
@pytest.mark.slow
def test_it_runs_from_the_first_cell_to_the_last(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()


@notebooks
def test_it_is_committed_as_it_ran(path):
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    assert all(output.output_type != "error" for output in outputs(path))
    assert all(output.get("name") != "stderr" for output in outputs(path))


@notebooks
def test_it_is_small(path):
    lines = [line for cell in cells(path, "code") for line in cell.source.splitlines() if line.strip()]
    assert len(lines) < MOST_CODE_LINES
    assert path.stat().st_size < MOST_BYTES


@notebooks
def test_it_tells_before_it_shows(path):
    kinds = [cell.cell_type for cell in nbformat.read(path, as_version=4).cells]
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    title = cells(path, "markdown")[0].source.splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")


@notebooks
def test_it_calls_and_shows_and_defines_nothing(path):
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE) for cell in cells(path, "code"))


@notebooks
def test_it_does_not_tell_where_it_ran(path):
    assert not MACHINE_PATH.search(str([cell.source for cell in cells(path, "code")]))
    texts = [
        output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs(path)
    ]
    texts += [output.get("data", {}).get("text/html", "") for output in outputs(path)]
    assert not MACHINE_PATH.search("\n".join(texts))
