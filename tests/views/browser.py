"""A headless Chromium without a network, to see what pages do."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
BINARY = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    BINARY is None, reason=f"no browser found: install one of {', '.join(NAMES)}"
)


def rendered(html: str, folder: Path) -> str:
    """The document as it stands once a page was loaded, written as HTML."""
    assert BINARY is not None
    page = folder / "page.html"
    page.write_text(html, encoding="utf-8")
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
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    return done.stdout.decode()
