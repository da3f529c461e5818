"""The site builds without a warning, holds every page, and loads nothing from the network."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
    "embed": "src",
}
REMOTE = re.compile(r"^\s*(https?:)?//", flags=re.IGNORECASE)


class Loads(HTMLParser):
    """What a page fetches when it is opened, and the pages that it leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in LOADS and LOADS[tag] in given:
            self.fetched.append(given[LOADS[tag]])
        if tag == "link" and given.get("rel") not in ("next", "prev", "search", "index", "author"):
            self.fetched.append(given.get("href", ""))
        if tag == "a":
            self.links.append(given.get("href", "").partition("#")[0])


def remote_in_css(text: str) -> list[str]:
    """Addresses that a style sheet fetches."""
    found = re.findall(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""", text)
    return [one for pair in found for one in pair if REMOTE.match(one)]


def reachable(site: Path) -> set[str]:
    """Pages that links lead to from the first one."""
    seen, ahead = set(), ["index.html"]
    while ahead:
        page = ahead.pop()
        if page in seen or not (site / page).is_file():
            continue
        seen.add(page)
        parser = Loads()
        parser.feed((site / page).read_text(encoding="utf-8"))
        ahead += [
            os.path.normpath(Path(page).parent / link)
            for link in parser.links
            if link.endswith(".html") and "://" not in link
        ]
    return seen


def test_site_is_whole_and_by_itself(tmp_path: Path) -> None:
    site = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(tmp_path / "doctrees"), str(DOCS), str(site)]
    # Should anything reach for the network all the same, it meets a closed door.
    closed = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    environment = {**os.environ, **closed, "OMP_NUM_THREADS": "1"}
    built = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0 and not built.stderr, built.stderr[-4000:]

    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        parser = Loads()
        parser.feed(text)
        assert not [one for one in parser.fetched if REMOTE.match(one)], page
        for style in re.findall(r"<style[^>]*>(.*?)</style>", text, flags=re.DOTALL):
            assert not remote_in_css(style), page
    for sheet in site.rglob("*.css"):
        assert not remote_in_css(sheet.read_text(encoding="utf-8")), sheet

    sources = [
        *DOCS.glob("*.md"),
        *(DOCS / "api").glob("*.*"),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]
    wanted = {page.relative_to(ROOT).as_posix().removeprefix("docs/") for page in sources}
    pages = {str(Path(name).with_suffix(".html")) for name in wanted}
    assert pages <= reachable(site), pages - reachable(site)

    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        check_outputs(notebook, site / "notebooks" / f"{notebook.stem}.html")


def check_outputs(notebook: Path, page: Path) -> None:
    """A notebook's page has a place for the output of every cell that has one."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    with_output = [cell for cell in cells if cell.get("outputs")]
    assert with_output, f"{notebook} was committed without outputs"
    text = page.read_text(encoding="utf-8")
    assert text.count('class="cell_output ') == len(with_output), notebook


def settings() -> Any:
    """The site's `conf.py`."""
    spec = importlib.util.spec_from_file_location("site_settings", DOCS / "conf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_indented_code_of_docstrings_is_code() -> None:
    lines = ["Summary:", "", "    one()", "    two()", "", "Args:", "    x: number."]
    settings().as_restructured_text(None, "function", "f", None, None, lines)
    code = [".. code-block:: python", "", "    one()", "    two()", ""]
    assert lines == ["Summary:", "", *code, "Args:", "    x: number."]


def test_remote_loads_are_found() -> None:
    parser = Loads()
    parser.feed('<script src="//cdn/x.js"></script><link rel="stylesheet" href="https://x/y.css">')
    assert all(REMOTE.match(one) for one in parser.fetched) and len(parser.fetched) == 2
    assert remote_in_css(
        "@import 'https://a/b'; p { src: url(\"//c/d.woff\") } i { x: url(e) }"
    ) == [
        "https://a/b",
        "//c/d.woff",
    ]
