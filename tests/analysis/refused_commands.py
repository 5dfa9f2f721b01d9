"""The check of a refused command, which many tests share."""

import pytest

from analysis.cli import run


def refused(capsys: pytest.CaptureFixture, arguments: list[str]) -> str:
    """Run a command that must be refused, and return its message.

    The command must end with status 2 and print one or two plain lines to standard error, and nothing else.
    """
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert 1 <= len(lines) <= 2
    assert lines[0].startswith("hessian-tools: ")
    assert "Traceback" not in printed.err
    return printed.err
