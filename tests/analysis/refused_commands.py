"""The check that every test of a refused command shares."""

import pytest

from analysis.cli import run


def refused(capsys: pytest.CaptureFixture, arguments: list[str]) -> str:
    """The message of a command that must end with status 2: one or two plain lines, and nothing else is printed."""
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert 1 <= len(lines) <= 2
    assert lines[0].startswith("hessian-tools: ")
    assert "Traceback" not in printed.err
    return printed.err
