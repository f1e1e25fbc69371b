"""A page of HTML that needs nothing else, and the same blocks as Markdown."""

import base64
from collections.abc import Sequence
from html import escape
from itertools import zip_longest

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
body.wide { max-width: 110rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
td, th { border-bottom: 1px solid #8884; padding: .3rem .6rem; text-align: left; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { font-weight: 700; } .pass { color: #00734f; } .fail { color: #c04a00; } .inconclusive { color: #8a6d00; }
.better { color: #00734f; } .worse { color: #c04a00; }
@media (prefers-color-scheme: dark) {
  .pass, .better { color: #3ec99a; } .fail, .worse { color: #ff8a4c; } .inconclusive { color: #e6c34d; }
}
figure { margin: 2rem 0; break-inside: avoid; } img { max-width: 100%; background: white; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; align-items: start; }
.pair figure { margin: 1rem 0; }
figcaption { font-size: .9rem; opacity: .8; } pre { overflow-x: auto; background: #8881; padding: .8rem; }
"""
FIGURES = ("value", "bound")
"""Heads of columns of figures; further ones may be named where a table is made."""
VERDICTS = ("pass", "fail", "inconclusive")

Row = Sequence[str]


def document(title: str, parts: Sequence[str], *, wide: bool = False) -> str:
    """The whole page."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(part for part in parts if part)
    opened = '<body class="wide">' if wide else "<body>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n{opened}\n{body}\n</body>\n</html>\n'


def html_table(
    heads: Row, rows: Sequence[Row], figures: Sequence[str] = FIGURES, links: Sequence[str] = ()
) -> str:
    """A table; columns under `figures` are set to the right, verdicts have their colours.

    `links`: where the last cell of each row leads to, "" for nowhere.
    """
    lines = ["<table>", "<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    for row, link in zip_longest(rows, links, fillvalue=""):
        cells = [
            f"<td{_class_of(head, cell, figures)}>{escape(cell)}</td>"
            for head, cell in zip(heads, row, strict=True)
        ]
        if link:
            cells[-1] = f'<td><a href="{escape(link, quote=True)}">{escape(row[-1])}</a></td>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])


def _class_of(head: str, cell: str, figures: Sequence[str]) -> str:
    if head == "verdict" or cell in VERDICTS:
        return f' class="verdict {escape(cell)}"'
    if cell in ("better", "worse"):
        return f' class="{cell}"'
    return ' class="figure"' if head in figures else ""


def html_picture(data: bytes, caption: str) -> str:
    """The picture itself is in the page."""
    told = escape(caption)
    image = f'<img alt="{told}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    return f"<figure>{image}<figcaption>{told}</figcaption></figure>"


def paragraphs(sentences: Sequence[str]) -> list[str]:
    return [f"<p>{escape(sentence)}</p>" for sentence in sentences]


def folded(title: str, text: str) -> str:
    """What is seen only by who opens it."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def markdown_table(heads: Row, rows: Sequence[Row]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
