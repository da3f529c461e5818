"""The console script: help, version, and the lazy table of commands."""

import sys
import types

import pytest

from analyses import cli


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


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists(name: str) -> None:
    assert callable(cli._resolve(cli.COMMANDS[name].target))
