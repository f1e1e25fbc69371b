"""The report: self-contained, complete, and safe against what names may hold."""

import base64
import io
import re
import shlex
from html.parser import HTMLParser

from matplotlib.image import imread

from sim import report
from sim.checks import Check
from sim.config import read
from sim.plots import drawn, plots
from sim.runs import open_run

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects text and links, and complains of tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.links, self.tags = [], [], [], set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(run):
    return Page(report.html(run, dict(drawn(run))))


def test_the_page_needs_nothing_but_itself(played):
    page = Page((played.path / "report.html").read_text())
    assert report.shown(played) == [name for name in plots if name not in {"beside", "quota_use"}]
    for name, link in zip(report.shown(played), page.links, strict=True):
        picture = base64.b64decode(link.removeprefix("data:image/png;base64,"), validate=True)
        assert picture == (played.path / "plots" / f"{name}.png").read_bytes()
        assert imread(io.BytesIO(picture), format="png").shape[1] > 900
    assert not page.tags & {"script", "link", "iframe"}


def test_the_page_says_the_verdict_every_check_and_every_key_figure(played):
    text = "".join(Page((played.path / "report.html").read_text()).text)
    assert text.count("PASS: 11 of 11 checks hold in failover") == 2
    for check in played.checks:
        assert check.name in text
    for label, value in report.figures(played):
        assert label in text
        assert value in text
    assert played.manifest["digest"] in text


def test_names_cannot_break_out_of_the_page(make_run):
    evil = '"><script>alert(1)</script>'
    checks = [Check(evil, 1, "<=", 2, "pass", evil)]
    run = make_run(checks=checks, scenario=evil, replicas=[evil], overrides=[f"name={evil}"])
    run.config["name"] = evil
    page = page_of(run)
    assert "script" not in page.tags
    assert "".join(page.text).count(evil) >= 6


def test_a_failed_and_an_interrupted_run_say_so_first(five, make_run):
    assert report.headline(five) == "FAIL: 1 of 2 checks hold in made"
    run = make_run(interrupted=True, in_flight=7)
    assert report.facts(run)[0].startswith("Interrupted: 7 requests were in flight")
    assert report.headline(run) == "INTERRUPTED: 0 of 0 checks hold in made"
    assert report.markdown(run).splitlines()[2].startswith("Interrupted: 7 requests")
    said = "".join(page_of(run).text)
    assert said.index("Interrupted: 7") < said.index("Strategy")


def test_an_empty_run_has_a_report_with_dashes(make_run):
    run = make_run(virtual_s=0.0)
    assert report.headline(run) == "INCONCLUSIVE: 0 of 0 checks hold in made"
    assert ("TTFT p50, s", "-") in report.figures(run)
    assert ("requests completed", "0") in report.figures(run)
    page = page_of(run)
    assert page.links == []
    assert (
        "Left out, as there would be nothing to see: beside (no other runs were played beside it);"
        in "".join(page.text)
    )
    assert "nan" not in "".join(page.text).lower().replace("scenario", "")


def test_the_markdown_links_to_pictures_that_are_there(played):
    text = (played.path / "report.md").read_text()
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(links) == len(plots) - 2
    assert "; quota use (no limit was set beyond concurrent requests" in text
    assert all((played.path / link).is_file() for link in links)
    assert "| pass | requests that did not complete | 0 | <= 0 | 0 | n=600 |" in text


def test_a_bar_in_a_name_does_not_break_the_markdown_table(five):
    assert "| pass | quick \\| <b> | 0.5 | <= 1 |" in report.markdown(five)


def test_the_command_plays_the_run_again(five, played):
    assert report.command(five) == "python -m sim scenario=made executor=roofline 'workload.path=a b.csv'"
    assert report.command(played).startswith("python -m sim scenario=failover executor=roofline")


def test_the_command_says_the_scenario_once(make_run):
    run = make_run(overrides=["scenario=made", "executor=roofline"])
    assert report.command(run) == "python -m sim scenario=made executor=roofline"


def test_the_words_of_the_command_compose_the_same_configuration(played):
    python, dash_m, module, *overrides = shlex.split(report.command(played))
    assert (python, dash_m, module) == ("python", "-m", "sim")
    assert read(overrides).config == played.config


def test_the_page_and_the_markdown_say_the_same_figures(played):
    text = report.markdown(played)
    for label, value in report.figures(played):
        assert f"| {label} | {value} |" in text
    for check in played.checks:
        assert check.name in text
    assert report.command(played) in text
    assert report.headline(played) in text


def test_failures_are_among_the_key_figures(five):
    assert {("requests completed", "3"), ("requests rejected", "1"), ("requests failed", "1")} <= set(
        report.figures(five)
    )


def test_the_same_run_gives_the_same_report(played, tmp_path):
    (tmp_path / "plots").symlink_to(played.path / "plots")
    report.write_report(open_run(played.path), tmp_path)
    for name in ("report.html", "report.md"):
        assert (tmp_path / name).read_bytes() == (played.path / name).read_bytes()
