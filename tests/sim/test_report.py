"""The report: self-contained, complete, and safe against what names may hold."""

import base64
import re
from html.parser import HTMLParser

import pytest

from sim import report
from sim.checks import Check
from sim.plots import plots, save_all

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


def page_of(run, tmp_path):
    save_all(run, tmp_path / "plots")
    return Page(report.html(run, tmp_path / "plots"))


def test_the_page_needs_nothing_but_itself(played):
    page = Page((played.path / "report.html").read_text())
    assert len(page.links) == len(plots)
    for link in page.links:
        assert base64.b64decode(link.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert not page.tags & {"script", "link", "iframe"}


def test_the_page_says_the_verdict_every_check_and_every_key_figure(played):
    text = "".join(Page((played.path / "report.html").read_text()).text)
    assert text.count("PASS: 10 of 10 checks hold in failover") == 2
    for check in played.checks:
        assert check.name in text
    for label, value in report.figures(played):
        assert label in text
        assert value in text
    assert played.manifest["digest"] in text


def test_names_cannot_break_out_of_the_page(make_run, tmp_path):
    evil = "<script>alert(1)</script>"
    run = make_run(checks=[Check(evil, 1, "<=", 2, "pass", evil)], scenario=evil)
    page = page_of(run, tmp_path)
    assert "script" not in page.tags
    assert evil in "".join(page.text)


def test_a_failed_and_an_interrupted_run_say_so_first(five, make_run, tmp_path):
    assert report.headline(five) == "FAIL: 1 of 2 checks hold in made"
    run = make_run(interrupted=True, in_flight=7)
    assert report.facts(run)[0].startswith("Interrupted: 7 requests were in flight")
    assert report.headline(run).startswith("INCONCLUSIVE")
    assert "Interrupted: 7" in "".join(page_of(run, tmp_path).text)


def test_the_markdown_links_to_pictures_that_are_there(played):
    text = (played.path / "report.md").read_text()
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(links) == len(plots)
    assert all((played.path / link).is_file() for link in links)
    assert "| pass | requests that did not complete | 0 | <= 0 | n=600 |" in text


def test_a_bar_in_a_name_does_not_break_the_markdown_table(five):
    assert "| pass | quick \\| <b> | 0.5 | <= 1 |" in report.markdown(five)


def test_the_command_plays_the_run_again(five, played):
    assert report.command(five) == "python -m sim scenario=made executor=roofline 'workload.path=a b.csv'"
    assert report.command(played).startswith("python -m sim scenario=failover executor=roofline")


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_the_same_run_gives_the_same_report(played, tmp_path, name):
    save_all(played, tmp_path / "plots")
    report.write_report(played, tmp_path)
    assert (tmp_path / name).read_bytes() == (played.path / name).read_bytes()
