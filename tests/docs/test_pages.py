"""Every page of the guide and every example does and says what it says."""

import re
import shutil
from pathlib import Path

import pytest

from engine.server.openapi import ROUTES
from tests.docs.pages import BLOCK, missing_from, play, shell

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted([*(DOCS / "guide").glob("*.md"), *(DOCS / "examples").glob("*.md")])
MARKDOWN = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
LINK = re.compile(r"\[[^\]]*\]\(\s*([^)\s]*)\s*\)")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_a_page_is_as_it_says(page, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("pages are typed with curl")
    with shell(tmp_path) as typed:
        wrong = play(page, typed)
    assert wrong is None, wrong


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    for link in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def anchors(page):
    """Of the headings of a page, as they are made on GitHub."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_route_of_operators_is_typed_in_the_page_on_operations():
    page = (DOCS / "guide" / "operations.md").read_text("utf-8")
    typed = {
        (method, path)
        for match in BLOCK.finditer(page)
        if match["mark"] == "test"
        for method, path in re.findall(r"^bash admin (\w+) '?([^\s'?]+)", match["text"], re.MULTILINE)
    }
    for route in ROUTES:
        method, _, path = route.partition(" ")
        if path.startswith("/admin"):
            form = re.compile(re.sub(r"\{\w+\}", "[^/]+", path) + "$")
            assert any(method == each and form.match(at) for each, at in typed), route


def test_every_tested_block_of_a_page_stands_where_the_runner_sees_it():
    for page in PAGES:
        text = page.read_text("utf-8")
        assert len(re.findall(r"^<!-- (?:test|serve|output.*|file: .*) -->$", text, re.MULTILINE)) == len(
            BLOCK.findall(text)
        ), page.name
        assert "FILL" not in text, page.name


def test_what_the_readme_says_of_serving_is_typed_in_the_quick_start():
    _, _, rest = (DOCS.parent / "README.md").read_text("utf-8").partition("\n## Serve a model\n")
    serving, _, _ = rest.partition("\n## ")
    typed = [
        match["text"] for match in BLOCK.finditer((DOCS / "guide" / "quick-start.md").read_text("utf-8"))
    ]
    shown = re.findall(r"^```bash\n(.*?)^```$", serving, re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    assert [text for text in shown if text not in typed] == []


PRINTED = 'a  {"took_s":0.12,"by":"x"}\nlast line 12 ms\n'


@pytest.mark.parametrize(
    "expected",
    [
        PRINTED,
        'a {"took_s":3.5,\n "by":"x"}\nlast line 7 ms',
        'a {"took_s":..., "by":"x"} ...',
        "... line 1 ms",
    ],
)
def test_breaks_and_figures_may_differ_and_three_dots_are_anything(expected):
    assert missing_from(PRINTED, expected) is None


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        ('a {"took_s":1,"by":"y"} ...', 'a {"took_s":1,"by":"y"} '),
        ("last line 1 ms", "last line 1 ms"),
        ('a {"took_s":1,"by":"x"}', "lastline#ms"),
        ("... line 1 ms ... last ...", " last "),
    ],
)
def test_words_and_their_order_may_not_differ(expected, missing):
    assert missing_from(PRINTED, expected) == missing


def test_exact_figures_may_not_differ():
    assert missing_from(PRINTED, '... "took_s":0.12, ...', is_exact=True) is None
    assert missing_from(PRINTED, '... "took_s":0.13, ...', is_exact=True) == ' "took_s":0.13, '
