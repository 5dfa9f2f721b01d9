"""What tests of refused commands share: the micro study with a change in its text, and the check of a refusal."""

import pytest

from analysis.cli import run
from analysis.study_file import study_text


def changed_micro(old: str, new: str) -> str:
    """The text of the micro study, in which ``new`` stands in place of ``old``."""
    text = study_text("micro")
    assert old in text
    return text.replace(old, new, 1)


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
