"""Tests that imports keep the contracts of pyproject.toml, which say what may import what."""

import subprocess
import sys
from pathlib import Path


def test_imports_point_downwards_only():
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    root = Path(__file__).parents[1]
    finished = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout
    assert "0 broken" in finished.stdout
