"""Tests of the help of the command line, and of its completion in shells."""

import shutil
import subprocess
import sys

import pytest

from analysis.cli import run


def test_help_is_instant_and_needs_no_torch():
    code = "import sys, analysis.cli as c; c.run(['--help']); assert 'torch' not in sys.modules; print('no torch')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no torch" in process.stdout
    for command in ("demo", "study", "train", "measure", "test", "figures", "report", "info", "verify"):
        assert command in process.stdout


def test_the_program_alone_says_what_to_do_next_and_its_commands_do_not(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = []
    for arguments in ([], ["--help"], ["info", "--help"]):
        assert run(arguments) == 0
        said.append(capsys.readouterr().out)
    last = said[0].split("What to do next:\n")[1].splitlines()
    assert said[0] == said[1]
    assert 3 <= len(last) <= 6
    for command in ("demo", "new", "study", "info", "explore"):
        assert sum(line.startswith(f"  hessian-tools {command} ") for line in last) == 1
    assert "What to do next" not in said[2]
    assert "empty" not in said[2]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_files_once_it_is_installed(working_folder, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(working_folder))
    assert run(["--install-completion", "--shell", "bash"]) == 0
    assert ".bashrc" in capsys.readouterr().out
    (working_folder / "mine.yaml").touch()
    (working_folder / "images").mkdir()
    for line, completed in (
        ("inf", "info"),
        ("study m", "mine.yaml"),
        ("study mine.yaml --data im", "images"),
        ("study mine.yaml --see", "--seeds --seed"),
        ("study mine.yaml --device c", "cpu cuda"),
        ("figures runs/mine --form", "--format"),
    ):
        complete = (
            f"source .bashrc; COMP_WORDS=(hessian-tools {line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1));"
            ' _hessian_tools; echo "${COMPREPLY[*]}"'
        )
        process = subprocess.run(["bash", "-c", complete], capture_output=True, text=True, check=True)
        assert process.stdout.strip() == completed, process.stderr


def test_the_completions_of_zsh_and_fish_are_written(working_folder, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(working_folder))
    for shell, file in (("zsh", ".zsh/completions/_cyclopts_hessian-tools"), ("fish", ".config/fish/completions/*")):
        assert run(["--install-completion", "--shell", shell]) == 0
        assert "explore" in next(working_folder.glob(file)).read_text()
