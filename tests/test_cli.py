"""The console script: help, version, and the lazy table of commands."""

import sys
import types

import pytest

from analyses import cli
from model_adapters import LoadError


def test_no_command_prints_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("regap 0.")


def test_unknown_command_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["dmeo"])
    assert stop.value.code == 2
    assert "demo" in capsys.readouterr().err


def test_a_command_gets_its_own_arguments_help_included(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    module = types.ModuleType("pretend_command")
    module.main = lambda argv: seen.append(argv) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pretend_command", module)
    monkeypatch.setitem(cli.COMMANDS, "pretend", cli.Command("pretend_command:main", "nothing"))

    assert cli.main(["pretend", "--help", "--json"]) == 3
    assert seen == [["--help", "--json"]]


def pretend(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A command that fails."""

    def fail(argv: object) -> int:
        raise error

    module = types.ModuleType("pretend_command")
    module.main = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pretend_command", module)
    monkeypatch.setitem(cli.COMMANDS, "pretend", cli.Command("pretend_command:main", "nothing"))


@pytest.mark.parametrize("error", [LoadError("no model\n'x'"), ValueError("no model 'x'")])
def test_what_a_command_cannot_do_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    pretend(monkeypatch, error)
    assert cli.main(["pretend"]) == 2
    assert capsys.readouterr().err == "regap pretend: no model 'x'\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, KeyError("oops"))
    with pytest.raises(KeyError, match="oops"):
        cli.main(["pretend"])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists(name: str) -> None:
    assert callable(cli._resolve(cli.COMMANDS[name].target))
