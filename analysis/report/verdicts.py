"""The verdicts of a report: a summary in words, and one table a claim."""

from collections.abc import Sequence
from math import isnan

from analysis.claims.verdict import Verdict
from analysis.report.page import DASH, TIMES, Html, bullets, element, interval, join, number, row, table
from analysis.style import method_label

CLAIMS = ("suppression", "shot", "alignment")
OUTCOMES = ("supported", "not supported", "inconclusive")
_COLUMNS = (
    "Learner against baseline",
    "Where",
    "Comparison",
    "Baseline, trained",
    "Effect, interval over seeds",
    "Bootstrap over tasks",
    "Smallest effect of interest",
    f"Seeds {TIMES} tasks",
    "Outcome",
)


def grouped(verdicts: Sequence[Verdict]) -> list[tuple[str, str, list[Verdict]]]:
    """Letter, title and verdicts of each claim that has any, in the order of the claims."""
    groups = []
    for letter, claim in zip("abc", CLAIMS, strict=True):
        rows = [verdict for verdict in verdicts if verdict.claim == claim]
        if rows:
            groups.append((letter, rows[0].title, rows))
    return groups


def answer(verdicts: Sequence[Verdict]) -> Html:
    """One item a claim: in how many comparisons it is supported, not supported, undecided, and in which."""
    if not verdicts:
        return element("p", "No verdict was made: this study has no comparison to judge.")
    return bullets(_claim_summary(*group) for group in grouped(verdicts))


def _claim_summary(letter: str, title: str, verdicts: list[Verdict]) -> Html:
    total = len(verdicts)
    counted = []
    for outcome in OUTCOMES:
        found = [verdict for verdict in verdicts if verdict.outcome == outcome]
        if found:
            head = element("b", f"{outcome} in {_share(len(found), total)}")
            counted.append(head if len(found) == total else join([head, f" ({_where(found)})"]))
    text = join([element("b", f"Claim {letter}"), f" ({title}): "])
    return join([text, join(counted, ", "), ". ", _levels(verdicts)])


def _levels(verdicts: Sequence[Verdict]) -> str:
    """What was measured, whatever the outcome: means over seeds, baseline to trained, of the plain comparisons."""
    plain = [v for v in verdicts if v.comparison in ("raw", "against untrained") and not isnan(v.effect)]
    sentences = []
    for steps in dict.fromkeys(v.steps for v in plain):
        levels = "; ".join(
            f"{method_label(v.learner)} {number(v.baseline_value)} → {number(v.trained_value)}"
            for v in plain
            if v.steps == steps
        )
        sentences.append(
            f"Mean {plain[0].quantity.replace('_', ' ')}, {steps} ({_against(plain[0])} → learner): {levels}."
        )
    return " ".join(sentences)


def _share(found: int, total: int) -> str:
    """In words that fit one row, all rows, or some of them."""
    if found == total:
        return "the only comparison" if total == 1 else f"all {total} comparisons"
    return f"{found} of {total} comparisons"


def _where(verdicts: Sequence[Verdict]) -> str:
    """'MAML: step 0 raw, step 0 at equal support loss; FOMAML: later steps raw'."""
    places: dict[str, list[str]] = {}
    for verdict in verdicts:
        between = {"raw": " ", "equal support loss": " at "}.get(verdict.comparison, "")
        steps = verdict.steps if between else ""
        places.setdefault(method_label(verdict.learner), []).append(f"{steps}{between}{verdict.comparison}")
    return "; ".join(f"{learner}: {', '.join(found)}" for learner, found in places.items())


def verdict_tables(verdicts: Sequence[Verdict]) -> Html:
    """One table a claim; under each row the sentence of its verdict."""
    parts = []
    for letter, title, rows in grouped(verdicts):
        parts.append(element("h3", f"Claim {letter}: {title[:1].upper()}{title[1:]}"))
        lines = [line for verdict in rows for line in _lines(verdict)]
        parts.append(table(_COLUMNS, lines, wide=True))
    return join(parts, "\n")


def _lines(verdict: Verdict) -> tuple[Html, Html]:
    baseline = "orthogonal gradients" if verdict.baseline == "0" else method_label(verdict.baseline)
    levels = f"{number(verdict.baseline_value)} → {number(verdict.trained_value)}"
    levels = DASH if levels == f"{DASH} → {DASH}" else levels
    unit = "" if verdict.units == "1" else f" {verdict.units}"
    effect = join(
        [element("b", number(verdict.effect, signed=True) + unit), Html("<br>"), interval(verdict.low, verdict.high)]
    )
    cells = (
        f"{method_label(verdict.learner)} against {baseline}",
        verdict.steps,
        verdict.comparison,
        element("span", levels, css="num"),
        element("span", effect, css="num"),
        element("span", interval(verdict.bootstrap_low, verdict.bootstrap_high), css="num"),
        number(verdict.margin if verdict.predicted == "positive" else -verdict.margin, signed=True),
        _size(verdict),
        badge(verdict.outcome),
    )
    words = element("tr", element("td", element("div", verdict.sentence), colspan=str(len(_COLUMNS))), css="sentence")
    return row(cells), words


def _size(verdict: Verdict) -> str:
    text = f"{verdict.num_seeds} {TIMES} {verdict.num_tasks}"
    if verdict.num_diverged:
        text += f"; {verdict.num_diverged} diverged"
    if verdict.share_compared < 1:
        text += f"; {verdict.share_compared:.0%} of points compared"
    return text


def badge(outcome: str) -> Html:
    """The outcome as text; its colour only repeats it."""
    return element("span", outcome, css=f"badge {outcome.split()[0]}")


def _against(verdict: Verdict) -> str:
    return "the learner without SHOT" if verdict.claim == "shot" else "untrained"
