"""`python -m sim.report`: a report anew, two runs beside each other, an index; and what cannot be read is said."""

import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from rich.console import Console

import sim
from sim import plots
from sim.checks import Check
from sim.config import read
from sim.folder import RunFolder
from sim.report import changes, html, html_index, markdown, shown
from sim.report.__main__ import main
from sim.report.pair import compared, figure_rows

SMALL = ("executor=roofline", "report=tables", "workload.requests=60")


class Page(HTMLParser):
    """The rows of the tables of a page, the text of the rest, and where links lead."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.pictures, self._cell, self.text = [], [], 0, False, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")
        if tag == "a":
            self.links.append(dict(attrs)["href"])
        self.pictures += tag == "img"

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same traffic served in two ways, tables only."""
    folder = tmp_path_factory.mktemp("two")
    lines = (*SMALL, f"report.folder={folder}")
    return [sim.run("steady", [*lines, *more]) for more in ([], ["strategy=random", "health.fall=3"])]


@pytest.fixture
def call(tmp_path, capsys):
    """Exit code, what is printed, and what is complained of."""

    def called(*arguments):
        with (tmp_path / "printed").open("w") as file:
            code = main(list(map(str, arguments)), Console(file=file, soft_wrap=True))
        printed = (tmp_path / "printed").read_text()
        return SimpleNamespace(code=code, printed=printed, error=capsys.readouterr().err)

    return called


@pytest.mark.slow
def test_an_interrupted_run_that_was_played_with_tables_only_gets_its_report(two, call, tmp_path):
    folder = shutil.copytree(two[0].path, tmp_path / "run.partial")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "interrupted": True, "in_flight": 4}))
    done = call(folder)
    assert (done.code, done.error) == (0, "")
    assert done.printed.split() == ["report", f"{folder / 'report.html'}", f"{folder / 'report.md'}"]
    page = Page((folder / "report.html").read_text())
    assert "INTERRUPTED: 1 of 1 checks hold in steady" in page.text
    assert "Interrupted: 4 requests were in flight" in page.text
    assert page.pictures == len(list((folder / "plots").iterdir())) == 9


def test_the_page_may_go_elsewhere_and_the_run_stays_as_it_is(make_run, call, tmp_path):
    folder = RunFolder(tmp_path / "runs", "made")
    folder.write(make_run(schema_version=1), [], with_plots=False)
    run, page = folder.publish(), tmp_path / "new" / "page.html"
    before = sorted(run.iterdir())
    done = call(run, f"out={page}")
    assert (done.code, done.printed) == (0, f"report  {page}\n")
    assert "INCONCLUSIVE: 0 of 0 checks hold in made" in Page(page.read_text()).text
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    assert sorted(run.iterdir()) == before


@pytest.mark.slow
def test_two_runs_stand_beside_each_other_on_a_page_that_needs_nothing_else(two, call, tmp_path):
    folders = [
        shutil.copytree(run.path, tmp_path / "runs" / name) for run, name in zip(two, "ab", strict=True)
    ]
    done = call(*folders)
    assert (done.code, done.printed) == (0, f"report  {tmp_path / 'runs' / 'a_beside_b.html'}\n")
    text = (tmp_path / "runs" / "a_beside_b.html").read_text()
    page = Page(text)
    rows = {row[0]: row for row in page.rows}
    assert rows["requests that did not complete"][1:] == ["pass", "0", "pass", "0", "<= 0", ""]
    _, first, second, difference, half, count, _, verdict = rows["mean_ttft_s"]
    assert float(second) - float(first) == pytest.approx(float(difference), rel=0.01)
    assert float(half) > 0
    assert (count, verdict in {"better", "worse", "no difference seen"}) == ("60", True)
    assert rows["requests completed"] == ["requests completed", "60", "60"]
    settings = page.text.split("What differs in the settings")[1].lstrip()
    assert settings.startswith("strategy=random\nhealth.fall=3\nChecks")
    assert page.pictures == 2 * 9 + 1
    assert not re.search(r"<(script|link|iframe)", text)
    assert not re.search(r'src="(?!data:image/png;base64,)', text)


def test_runs_of_other_traffic_are_shown_but_not_paired(two, make_run):
    other = make_run(seed=3, scenario="steady")
    found, why_not = compared(two[0], other)
    assert found is None
    assert why_not.startswith("There are none: seed 1 has no run on the second side")
    assert ("requests completed", "60", "0") in figure_rows(two[0], other)


def test_with_more_seeds_beside_both_the_differences_are_over_those(two):
    runs = [sim.open_run(run.path) for run in two]
    for run, other in zip(runs, two, strict=True):
        again = sim.open_run(other.path)
        again.manifest = {**again.manifest, "seed": 2, "digest": "of another run"}
        run.played_beside = {"itself": [run, again]}
    found, why_not = compared(*runs)
    assert (found.seeds, why_not) == ([1, 2], "")


def test_many_runs_have_an_index_with_links_to_those_that_have_a_report(two, call, tmp_path):
    for name, run in zip("abc", (*two, two[0]), strict=True):
        shutil.copytree(run.path, tmp_path / "runs" / name)
    (tmp_path / "runs" / "b" / "report.html").write_text("")
    done = call(tmp_path / "runs" / "*")
    assert done.printed.splitlines() == [
        f"index   {tmp_path / 'runs' / 'index.html'}",
        "2 of 3 runs have no report yet: python -m sim.report RUN writes one",
    ]
    page = Page((tmp_path / "runs" / "index.html").read_text())
    assert page.links == ["b/report.html"]
    assert "3 runs: 3 pass" in page.text
    assert [row[:5] for row in page.rows[1:]] == [
        ["pass", "steady", "1", strategy, "roofline"] for strategy in ("round_robin", "random", "round_robin")
    ]
    assert call(tmp_path / "runs" / "*").code == 0  # the index itself is no run


def test_names_cannot_break_out_of_the_index(make_run, tmp_path):
    evil = '"><script>alert(1)</script>'
    page = html_index([make_run(scenario=evil, strategy=evil)] * 3, tmp_path)
    assert "<script>" not in page
    assert Page(page).rows[1][1] == evil


BAD = {
    "nothing": ([], "usage: python -m sim.report"),
    "no folder": (["{tmp}/nowhere"], "there is no folder '{tmp}/nowhere'"),
    "no match": (["{tmp}/nowhere*"], "no run folder matches '{tmp}/nowhere*'"),
    "no run": (["{tmp}/empty"], "{tmp}/empty is not a run folder: it has no manifest.json"),
    "other manifest": (["{tmp}/other"], "{tmp}/other is not a run folder: its manifest.json is of something else"),
    "half-written": (["{tmp}/half"], "{tmp}/half is half-written: it has no timeseries.parquet"),
    "torn json": (["{tmp}/torn"], "{tmp}/torn is half-written or damaged: manifest.json cannot be read"),
    "torn table": (["{tmp}/cut"], "{tmp}/cut is half-written or damaged: requests.parquet cannot be read"),
    "later schema": (
        ["{tmp}/later"], "{tmp}/later has schema version 99, but this version of Modelyard reads 1",
    ),
    "two outs": (["{tmp}/run", "out=a.html", "out=b.html"], "out is 'a.html', 'b.html', but must be one path"),
    "no page": (["{tmp}/run", "out=a.txt"], "out is 'a.txt', but must be one path that ends in .html"),
    "only out": (["out=a.html"], "no run is named, but at least one folder must be"),
    "in the way": (["{tmp}/run", "out={tmp}/file/a.html"], "but nothing can be written there: "),
}  # fmt: skip


@pytest.fixture
def damaged(two, tmp_path):
    for name in ("run", "half", "torn", "cut", "later"):
        shutil.copytree(two[0].path, tmp_path / name)
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other" / "manifest.json").write_text("[1]")
    (tmp_path / "half" / "timeseries.parquet").unlink()
    text = (tmp_path / "torn" / "manifest.json").read_text()
    (tmp_path / "torn" / "manifest.json").write_text(text[: len(text) // 2])
    (tmp_path / "later" / "manifest.json").write_text(
        text.replace('"schema_version": 1', '"schema_version": 99')
    )
    data = (tmp_path / "cut" / "requests.parquet").read_bytes()
    (tmp_path / "cut" / "requests.parquet").write_bytes(data[: len(data) // 2])
    return tmp_path


def test_what_cannot_be_read_or_written_is_one_sentence_and_exit_code_2(damaged, call):
    for name, (arguments, sentence) in BAD.items():
        done = call(*(argument.replace("{tmp}", str(damaged)) for argument in arguments))
        told = done.printed if name == "nothing" else done.error
        assert done.code == 2, name
        assert sentence.replace("{tmp}", str(damaged)) in told, name
        assert name == "nothing" or told.count("\n") == 1, name
        assert "Traceback" not in told, name


def test_help_is_no_mistake(call):
    assert call("--help").code == 0


def test_what_was_published_stands_beside_ours(make_run):
    checks = [Check("hits", 0.7, ">=", 0.5, "pass", "n=9", "67 %"), Check("lost", 0, "<=", 0, "pass")]
    run = make_run(checks=checks)
    rows = Page(html(run, {})).rows
    assert rows[0] == ["verdict", "check", "value", "bound", "published", "rests on"]
    assert rows[1] == ["pass", "hits", "0.7", ">= 0.5", "67 %", "n=9"]
    assert "| pass | hits | 0.7 | >= 0.5 | 67 % | n=9 |" in markdown(run)
    assert "published" not in html(make_run(checks=checks[1:]), {})


def test_runs_beside_are_a_table_of_paired_differences_and_a_forest(two):
    run = sim.open_run(two[0].path)
    run.played_beside = {"itself": [run], "random": [two[1]]}
    rows = [row for row in Page(html(run, {})).rows if row[0] == "random"]
    assert {"mean_ttft_s", "token_hit_ratio", "completed"} <= {row[1] for row in rows}
    assert "beside" in shown(run)
    names = [label.get_text() for label in plots.beside(run).axes[0].get_yticklabels()]
    assert names == ["random: mean_ttft_s", "random: mean_tpot_s", "random: mean_e2e_s"]
    assert "## Runs beside this one" in markdown(run)


def test_the_changes_make_the_first_configuration_the_second_and_are_few():
    base = ["scenario=steady", "executor=roofline"]
    first = read(base).config
    plain = ["strategy=least_loaded", "workload.rate=7"]
    second = read([*base, *plain, "report.folder=elsewhere"]).config
    assert changes(first, second) == plain
    assert changes(first, first) == []
    many = [
        "strategy=blend", "executor=law", "eviction=arc", "tiers=five", "health.enabled=false", "seed=4",
        "quotas.limits=[{model: '*', hourly_tokens: 5}]", "routing.fallbacks={a: [b], *: [auto]}",
    ]  # fmt: skip
    third = read([*base, *many]).config
    found = changes(first, third)
    assert {"executor=law", "eviction=arc", "seed=4"} <= set(found)
    assert changes(read([*base, *found]).config, third) == []


def test_what_only_one_side_has_is_added_or_taken_away():
    less, more = {"a": {"b": 1}}, {"a": {"b": 1, "c": None}, "d": ["x y", "true", 2.5]}
    assert changes(less, more) == ["+a.c=null", "+d=['x y','true',2.5]"]
    assert changes(more, less) == ["~a.c", "~d"]
