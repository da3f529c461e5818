"""One self-contained HTML report: opens offline, runs no script, loads no other file."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from regap_interp.graph.words import printable
from regap_interp.views.markup import POLICY

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2430; background: #fff;
       max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: .85rem; }
caption { text-align: left; color: #475467; padding: .3rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d0d5dd; text-align: left;
         vertical-align: top; font-variant-numeric: tabular-nums; }
thead th { border-bottom: 2px solid #667085; }
.wide { overflow-x: auto; } figure { margin: 1.2rem 0; }
figure svg { max-width: 100%; height: auto; } figcaption { color: #475467; font-size: .9rem; }
nav { font-size: .9rem; } nav a { margin-right: 1rem; }
"""


@dataclass(frozen=True)
class Table:
    """Cells of text under a header; the first column names the row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """As many cells each as `header` has."""
    caption: str = ""

    def __post_init__(self) -> None:
        """Refuse rows of another length."""
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"a row has {len(row)} cells under {len(self.header)} headings: {row}; give "
                    "each row as many"
                )


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows in words."""

    svg: str
    """From `View.svg`: put into the page as it is."""
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the report, in the order: text, tables, figures."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


def report_html(title: str, sections: Sequence[Section]) -> str:
    """A whole page. All text is escaped; the page's own policy forbids scripts and loading.

    Args:
        title: Of the page.
        sections: In order.

    Raises:
        ValueError: A figure holds something that is no drawing, such as a script.
    """
    links = " ".join(
        f'<a href="#section-{number}">{_text(section.heading)}</a>'
        for number, section in enumerate(sections)
    )
    body = "\n".join(_section(number, section) for number, section in enumerate(sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="section-{number}">', f"<h2>{_text(section.heading)}</h2>"]
    parts += [f"<p>{_text(one)}</p>" for one in section.paragraphs]
    parts += [_table(one) for one in section.tables]
    parts += [_picture(one) for one in section.pictures]
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(one)}</th>' for one in table.header)
    rows = "\n".join(
        f'<tr><th scope="row">{_text(name)}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in table.rows
    )
    caption = f"<caption>{_text(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _picture(picture: Picture) -> str:
    drawing = picture.svg.strip()
    if not drawing.startswith("<svg") or "<script" in drawing.lower():
        raise ValueError(
            f"a figure begins with {drawing[:30]!r} or holds a script; give the SVG of a view"
        )
    caption = f"<figcaption>{_text(picture.caption)}</figcaption>"
    return f"<figure>{drawing}\n{caption}</figure>"


def _text(text: str) -> str:
    return escape(printable(text))
