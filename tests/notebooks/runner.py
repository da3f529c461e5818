"""Run the notebooks and write them clean: `python -m tests.notebooks.runner [1 2_geometry ...]`.

Each runs in a fresh kernel of this Python, offline, in an empty folder. What is written is the same
for the same outputs, and a notebook with unsafe, noisy or machine-bound outputs is not written.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
MIMES = {"text/plain", "text/html", "text/markdown", "image/png", "image/svg+xml"}
_ACTIVE = {"script", "iframe", "object", "embed", "link", "meta", "base", "form", "video", "audio"}
_DATA = re.compile(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=\s]*")
_UNSTABLE = {
    "a path of this machine": re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|var|Users|opt)/"),
    "a memory address": re.compile(r"\b0x[0-9a-f]{6,}"),
}


class _ThisPython(KernelSpecManager):
    """Knows one kernel, whatever the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class _Active(HTMLParser):
    """Collects what could run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _ACTIVE:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            loads = name in ("src", "href", "xlink:href", "srcset", "srcdoc")
            if name.startswith("on") or (loads and not (value or "").startswith(("data:im", "#"))):
                self.found.append(f"{name} of <{tag}>")


def execute(notebook: Any) -> None:
    """Run a notebook in place.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    with tempfile.TemporaryDirectory() as kernel, tempfile.TemporaryDirectory() as here:
        settings = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
        # tqdm says so once where ipywidgets is not installed.
        settings |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore:IProgress not found"}
        folders = dict.fromkeys(("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"), kernel)
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=_ThisPython(),
            connection_file=str(Path(kernel) / "kernel.json"),
            transport="ipc",  # no ports, which tests side by side would race for
        )
        client = NotebookClient(
            notebook, km=manager, timeout=300, record_timing=False, coalesce_streams=True
        )
        # Of small matrices, more threads than one wait for each other; beside other work, for long.
        env = {"OMP_NUM_THREADS": "1", **os.environ, **settings, **folders}
        # nbclient leaves a kernel running that it did not start itself, unless told otherwise.
        client.execute(cwd=here, env=env, cleanup_kc=True)


def clean(notebook: Any) -> None:
    """Drop what changes from run to run, in place, and pictures of which there is HTML."""
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": spec, "language_info": {"name": "python"}}
    notebook.metadata = nbformat.from_dict(about)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = str(number), nbformat.NotebookNode()
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", ()):
                output.data.pop("image/png", None)
            if "metadata" in output:
                output.metadata = nbformat.NotebookNode()


def refusals(notebook: Any) -> Iterator[str]:
    """What keeps the outputs from being committed, with the number of the cell."""
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", ()):
            for wrong in _refusals_of(output):
                yield f"cell {number}: {wrong}"


def _refusals_of(output: Any) -> Iterator[str]:
    if output.output_type == "error" or output.get("name") == "stderr":
        yield f"{output.output_type} {output.get('text') or output.get('evalue')!r}"
        return
    data = output.get("data", {"text/plain": output.get("text", "")})
    yield from (f"the mime type {kind}" for kind in data if kind not in MIMES)
    for kind in ("text/html", "text/markdown", "image/svg+xml"):
        parser = _Active()
        parser.feed(data.get(kind, ""))
        yield from (f"{found} in {kind}" for found in parser.found)
    for kind, value in data.items():
        for what, pattern in _UNSTABLE.items():
            if kind != "image/png" and (found := pattern.search(_DATA.sub("", str(value)))):
                yield f"{what} in {kind}: {value[found.start() : found.start() + 60]!r}"


def main() -> int:
    """Run the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="numbers, or beginnings of names; all by default")
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder; by default in place")
    given = parser.parse_args()
    named = tuple(given.names) or ("",)
    chosen = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.name.startswith(named)]
    if not chosen:
        parser.error(f"no notebook in {FOLDER} begins with {given.names}")
    failed = 0
    for path in chosen:
        notebook = nbformat.read(path, as_version=4)
        start = time.perf_counter()
        execute(notebook)
        seconds = time.perf_counter() - start
        clean(notebook)
        found = list(refusals(notebook))
        failed += bool(found)
        if not found:
            nbformat.write(notebook, given.into / path.name)
        size = len(nbformat.writes(notebook)) / 1e6
        print(f"{path.name}: {seconds:.1f} s, {size:.2f} MB", *found, sep="\n  ", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
