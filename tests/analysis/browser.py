"""Debian's Chromium without a window, driven by playwright, for the tests of the explorer."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
PATIENCE = 180_000  # milliseconds that a step may take; on a quiet machine it takes a second or less


@contextmanager
def new_page(folder: Path, **options: Any) -> Iterator[Any]:
    """A page of a browser that keeps its data in an empty folder; errors of the page's scripts fail the test.

    options: those of a playwright context, such as ``viewport`` or ``color_scheme``.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's chromium is not installed")
    errors: list[str] = []
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(folder), executable_path=chromium, headless=True, args=ARGUMENTS, timeout=PATIENCE, **options
        )
        page = context.pages[0]
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        context.close()
    assert not errors


def set_slider(page: Any, name: str, position: int) -> None:
    """Move a slider of the explorer as a hand does: ``name`` is "checkpoint" or "step"."""
    page.locator(f"[data-slider={name}]").fill(str(position))


def shown_values(page: Any) -> dict[str, list[str]]:
    """The cells of the table of values, by learner."""
    rows = page.locator("tr[data-learner]")
    return {row.get_attribute("data-learner"): row.locator("td").all_inner_texts() for row in rows.all()}


def as_number(text: str) -> float:
    """A number as the explorer writes it; NaN where nothing was measured."""
    return float("nan") if text == "not measured" else float(text.replace("\u2212", "-"))
