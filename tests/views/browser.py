"""A headless Chromium without a network, to see what pages do."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.views.samples import Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
BINARY = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    BINARY is None, reason=f"no browser found: install one of {', '.join(NAMES)}"
)
_MEASURE = """<script>addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect();
                     return [r.left, r.top, r.width, r.height].map(Math.round); };
  const of = tag => [...document.querySelectorAll(tag)];
  document.documentElement.dataset.seen = JSON.stringify({
    figures: of("figure").map(e => [...box(e), e.innerText]),
    images: of("img").map(e => [...box(e), e.naturalWidth]),
    cells: of("td,i,figure span").map(e => [...box(e),
                                            getComputedStyle(e).backgroundColor]),
    requests: performance.getEntriesByType("resource").map(e => e.name),
  });
});</script>"""


@dataclass(frozen=True)
class Seen:
    """What a reader gets to see of a page."""

    figures: list[list[Any]]
    """Left, top, width, height (pixels) and the text that is shown, of every view."""
    images: list[list[Any]]
    """Left, top, width, height, and the width of the file: 0 where it was not shown."""
    cells: list[list[Any]]
    """Left, top, width, height and background of every cell, chip and tile."""
    requests: list[str]
    """Addresses that the page asked for, answered or not."""
    ran: bool
    """Whether hostile text ran."""
    dom: str
    """The document as HTML."""


def rendered(html: str, folder: Path) -> str:
    """The document as it stands once a page was loaded, written as HTML."""
    page = folder / "page.html"
    page.write_text(html, encoding="utf-8")
    return _chromium(folder, "--dump-dom", page.as_uri())


def seen(html: str, folder: Path) -> Seen:
    """What a page shows and asks for. A script at its end measures it, which a policy forbids."""
    dom = rendered(html.replace("http-equiv", "name") + _MEASURE, folder)
    root = dict(Page(dom, strict=False).elements)["html"]
    return Seen(**json.loads(root["data-seen"] or ""), ran="data-ran" in root, dom=dom)


def photographed(page: Path, picture: Path, *, size: tuple[int, int] = (1000, 900)) -> Path:
    """A page as a picture, for people to look at."""
    _chromium(
        picture.parent,
        f"--screenshot={picture}",
        f"--window-size={size[0]},{size[1]}",
        "--hide-scrollbars",
        page.resolve().as_uri(),
    )
    return picture


def _chromium(folder: Path, *options: str) -> str:
    assert BINARY is not None
    done = subprocess.run(
        [
            BINARY,
            "--headless",
            "--no-sandbox",  # continuous integration runs as root, which Chromium refuses otherwise
            "--disable-gpu",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=3000",  # until scripts that draw later have drawn
            *options,
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    return done.stdout.decode()
