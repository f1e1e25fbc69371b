"""`python -m sim.report RUN`: the report of a run anew; of two beside each other; of more an index.

0: written. 2: a run cannot be read, or the page cannot be written. 130: interrupted.
"""

import sys
from collections.abc import Sequence
from glob import escape, glob
from pathlib import Path

from rich.console import Console

from engine.errors import BadSettings
from sim import plots
from sim.early import begin
from sim.experiments import complain
from sim.folder import put
from sim.report.index import html_index
from sim.report.one import html, write_report
from sim.report.pair import html_pair
from sim.runs import Run, open_run

USAGE = """usage: python -m sim.report RUN              report.html, report.md and plots/ of a run folder, anew
       python -m sim.report RUN RUN          both beside each other, with paired differences
       python -m sim.report RUN RUN RUN ...  an index of them, with links to their reports

RUN is a run folder, finished or interrupted (.partial), or a pattern of them such as 'runs/*_steady_*'.

  out=PAGE.html   where the page goes; otherwise into the run folder, or beside the first one

exit codes: 0 written, 2 a run cannot be read or the page cannot be written, 130 interrupted"""
PAIR = 2


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = console or Console(soft_wrap=True)
    if not given or {"--help", "-h"} & set(given):
        out.print(USAGE, markup=False, highlight=False, soft_wrap=True)
        return 0 if given else 2
    try:
        page, names = parted(given)
        runs = [open_run(folder) for folder in folders_of(names)]
        for line in write(runs, page):
            out.print(line, markup=False, highlight=False)
    except BadSettings as error:
        complain(error)
        return 2
    except OSError as error:
        complain(f"{error.filename or 'the report'} cannot be written: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        complain("interrupted; what was there before is still whole")
        return 130
    return 0


def parted(given: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Where the page is to go, and the runs. Raises BadSettings."""
    outs = [each.removeprefix("out=") for each in given if each.startswith("out=")]
    names = [each for each in given if not each.startswith("out=")]
    if len(outs) > 1 or (outs and not outs[0].endswith(".html")):
        raise BadSettings(f"out is {', '.join(map(repr, outs))}, but must be one path that ends in .html")
    if not names:
        raise BadSettings("no run is named, but at least one folder must be")
    return (Path(outs[0]) if outs else None), names


def folders_of(names: Sequence[str]) -> list[Path]:
    """Every folder that is named, or that a pattern matches, once. Raises BadSettings for a name without any."""
    found: dict[Path, None] = {}
    for name in names:
        if Path(name).is_dir():
            matches = [Path(name)]
        else:  # a pattern means whole runs; other files and folders that it matches are no mistake
            paths = sorted(glob(name, recursive=True))  # noqa: PTH207  absolute patterns too
            matches = [Path(path) for path in paths if (Path(path) / "manifest.json").is_file()]
        if not matches:
            is_pattern = name != escape(name)
            what = "no run folder matches" if is_pattern else "there is no folder"
            raise BadSettings(f"{what} {name!r}")
        found |= dict.fromkeys(matches)
    return list(found)


def write(runs: Sequence[Run], out: Path | None) -> list[str]:
    """Write what is due for so many runs; what is to be said of it."""
    if len(runs) == 1:
        return _write_one(runs[0], out)
    parent = runs[0].path.parent
    if len(runs) == PAIR:
        path = out or parent / f"{runs[0].path.name}_beside_{runs[1].path.name}.html"
        return [f"report  {_put(path, html_pair(*runs))}"]
    path = out or parent / "index.html"
    bare = sum(not (run.path / "report.html").is_file() for run in runs)
    lines = [f"index   {_put(path, html_index(runs, path.parent))}"]
    if bare:
        lines.append(f"{bare} of {len(runs)} runs have no report yet: python -m sim.report RUN writes one")
    return lines


def _write_one(run: Run, out: Path | None) -> list[str]:
    if out is not None:
        return [f"report  {_put(out, html(run, dict(plots.drawn(run))))}"]
    plots.save_all(run, run.path / "plots")
    write_report(run, run.path)
    return [f"report  {run.path / 'report.html'}", f"        {run.path / 'report.md'}"]


def _put(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, text.encode())
    except OSError as error:
        raise BadSettings(
            f"out is {str(path)!r}, but nothing can be written there: {error.strerror}"
        ) from error
    return path


if __name__ == "__main__":
    begin()
    sys.exit(main())
