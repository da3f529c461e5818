"""Every public name has a page in the reference, and says what it does and what it takes."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sphinx.pycode import ModuleAnalyzer

DOCS = Path(__file__).parents[2] / "docs"
PACKAGES = (
    "model_adapters",
    "model_adapters.families",
    "regap_interp",
    "regap_interp.artefact",
    "regap_interp.graph",
    "regap_interp.interop",
    "regap_interp.views",
    "analyses.families",
    "analyses.geometry",
    "analyses.patching",
    "analyses.circuits",
)
DIRECTIVE = re.compile(r"^\.\. auto(\w+):: ([\w.]+)$", flags=re.MULTILINE)
# These mean the same everywhere: the model, its config, a file, a matplotlib axis, where in the
# model, of what medium, and two of a kind.
KNOWN = {"adapter", "config", "path", "ax", "site", "layer", "modality", "first", "second"}
ELSEWHERE = re.compile(r"\b([Ss]ee|[Aa]s) (`|there)")


def public_names(package: str) -> dict[str, str]:
    """Name -> module that defines it, for what the package's `__init__` re-exports: listed in
    `__all__`, or imported under its own name."""
    module = importlib.import_module(package)
    listed = getattr(module, "__all__", ())
    tree = ast.parse(inspect.getsource(module))
    return {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname == alias.name or alias.name in listed
    }


def described() -> list[tuple[str, str]]:
    """(kind, path) of every entry of the reference's pages."""
    pages = sorted((DOCS / "api").glob("*.rst"))
    return [entry for page in pages for entry in DIRECTIVE.findall(page.read_text("utf-8"))]


def resolve(path: str) -> Any:
    package, _, name = path.rpartition(".")
    return getattr(importlib.import_module(package), name)


PUBLIC = [(package, name) for package in PACKAGES for name in public_names(package)]


def test_public_names_are_found() -> None:
    names = {f"{package}.{name}" for package, name in PUBLIC}
    few = {"model_adapters.load", "regap_interp.auroc", "analyses.patching.patch_sweep"}
    assert few <= names
    assert len(names) > 200


def test_every_public_name_is_on_one_page() -> None:
    entries = [path for _, path in described()]
    assert len(entries) == len(set(entries))
    there = [resolve(path) for path in entries]
    missing = [
        f"{package}.{name}"
        for package, name in PUBLIC
        if not any(resolve(f"{package}.{name}") is one for one in there)
    ]
    assert not missing, f"add to a page of docs/api: {missing}"


def test_entries_are_public_and_of_their_kind() -> None:
    names = {f"{package}.{name}" for package, name in PUBLIC}
    for kind, path in described():
        assert path in names, f"{path} is not re-exported by its package"
        one = resolve(path)
        is_class = inspect.isclass(one) and not hasattr(one, "__origin__")
        found = "function" if inspect.isroutine(one) else "data"
        if is_class:
            found = "exception" if issubclass(one, BaseException) else "class"
        assert kind == found, path


def own_docstring(one: Any) -> str:
    """Neither inherited nor the signature that dataclasses write."""
    text = one.__dict__.get("__doc__") if inspect.isclass(one) else one.__doc__
    text = text or ""
    return "" if inspect.isclass(one) and text.startswith(f"{one.__name__}(") else text


def functions_of(name: str, one: Any) -> Iterator[tuple[str, Any]]:
    """A function, or a class's own public methods and properties.

    Methods that stand in for one of a base class take what that takes.
    """
    if not inspect.isclass(one):
        yield name, one
        return
    for attribute, value in vars(one).items():
        if not attribute.startswith("_") and not any(hasattr(b, attribute) for b in one.__bases__):
            inner = value.fget if isinstance(value, property) else value
            inner = getattr(inner, "func", getattr(inner, "__func__", inner))
            if inspect.isfunction(inner) and inner.__name__ != "<lambda>":  # a field's default
                yield f"{name}.{attribute}", inner


def untold(function: Any) -> list[str]:
    """Parameters that a docstring should name and does not.

    A single parameter is what the summary is about. Of several, each has a line under Args, or
    its name is a word of the text; a plural or a capital will do. Or the text says where to look.
    """
    names = [
        name
        for name, one in inspect.signature(function).parameters.items()
        if name not in ("self", "cls") and not name.startswith("_")
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    text = inspect.getdoc(function) or ""
    if len(names) < 2:
        return []
    if "Args:\n" in text:
        section = text.partition("Args:\n")[2]
        return [n for n in names if not re.search(rf"^ +{n}(, \w+)*:", section, re.MULTILINE)]
    if ELSEWHERE.search(text.partition("Raises:")[0]):
        return []
    words = set(re.findall(r"\w+", text.lower()))
    return [n for n in names if n not in KNOWN and not {n.lower(), f"{n}s".lower()} & words]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=map(".".join, PUBLIC))
def test_public_names_explain_themselves(package: str, name: str) -> None:
    one = resolve(f"{package}.{name}")
    if inspect.isroutine(one) or (inspect.isclass(one) and not hasattr(one, "__origin__")):
        assert own_docstring(one), "no docstring"
        for path, function in functions_of(name, one):
            assert inspect.getdoc(function), f"{path}: no docstring"
            assert not untold(function), f"{path}: says nothing of {untold(function)}"
    else:
        defined_in = public_names(package)[name]
        while name in (further := _re_exports(defined_in)):
            defined_in = further[name]
        comments = ModuleAnalyzer.for_module(defined_in).find_attr_docs()
        assert comments.get(("", name)) or _is_instance_documented(one), "no text below it"


def _re_exports(module: str) -> dict[str, str]:
    return public_names(module) if module in PACKAGES else {}


def _is_instance_documented(one: Any) -> bool:
    return type(one).__module__.split(".")[0] in {p.split(".")[0] for p in PACKAGES}


def test_a_parameter_without_a_word_is_found() -> None:
    def bare(items: int, seed: int) -> None:
        """All items."""

    def section(items: int, seed: int) -> None:
        """Items, drawn by a seed.

        Args:
            items: all.
        """

    assert untold(bare) == ["seed"]
    assert untold(section) == ["seed"]
