"""The verdicts of a report: a summary in words, and one table a claim."""

from collections import Counter
from collections.abc import Sequence
from math import isnan

from analysis.claims.verdict import Verdict
from analysis.drawing.style import method_label
from analysis.report.page import DASH, TIMES, Html, bullets, element, interval, join, number, row, table

CLAIMS = ("suppression", "shot", "alignment")
OUTCOMES = ("supported", "not supported", "inconclusive")
COLUMNS = (
    "Learner against baseline",
    "Where",
    "Comparison",
    "Baseline, trained",
    "Effect, {level:g} % interval over seeds",
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
            remarks = [_where(found, verdicts)] if len(found) < total else []
            remarks += _caveat(found)
            counted.append(join([head, f" ({'; '.join(remarks)})"]) if remarks else head)
    text = join([element("b", f"Claim {letter}"), f" ({title}): "])
    return join([text, join(counted, ", "), ". ", _levels(verdicts)])


def _caveat(verdicts: Sequence[Verdict]) -> list[str]:
    """What to add to an outcome that rests on two seeds, the fewest that decide: they can agree by luck."""
    few = [verdict for verdict in verdicts if verdict.num_seeds == 2 and verdict.outcome != "inconclusive"]
    if not few:
        return []
    if len(few) == len(verdicts):
        return ["two seeds; add some before relying on it"]
    return [f"{len(few)} of these on two seeds; add some before relying on them"]


def _levels(verdicts: Sequence[Verdict]) -> str:
    """What was measured, whatever the outcome: means over seeds, baseline to trained, of the plain comparisons."""
    plain = [v for v in verdicts if v.comparison in ("raw", "against untrained") and not isnan(v.effect)]
    sentences = []
    for steps, quantity in dict.fromkeys((v.steps, v.quantity) for v in plain):
        levels = "; ".join(
            f"{method_label(v.learner)} {number(v.baseline_value)} → {number(v.trained_value)}"
            for v in plain
            if (v.steps, v.quantity) == (steps, quantity)
        )
        sentences.append(f"Mean {quantity.replace('_', ' ')}, {steps} ({_against(plain[0])} → learner): {levels}.")
    return " ".join(sentences)


def _share(found: int, total: int) -> str:
    """In words that fit one row, all rows, or some of them."""
    if found == total:
        return "the only comparison" if total == 1 else f"all {total} comparisons"
    return f"{found} of {total} comparisons"


def _where(found: Sequence[Verdict], among: Sequence[Verdict]) -> str:
    """'MAML: step 0 raw, step 0 at equal support loss; all of FOMAML', as many as there are of a learner."""
    rows = Counter(verdict.learner for verdict in among)
    whole = [name for name, num in Counter(v.learner for v in found).items() if num == rows[name] > 1]
    places: dict[str, list[str]] = {}
    for verdict in found:
        if verdict.learner in whole:
            continue
        between = "" if verdict.comparison == "raw" else "at "
        alone = verdict.comparison.startswith("against")  # "against orthogonal": of all steps
        place = verdict.comparison if alone else f"{verdict.steps} {between}{verdict.comparison}"
        places.setdefault(method_label(verdict.learner), []).append(place)
    parts = [f"{learner}: {', '.join(at)}" for learner, at in places.items()]
    return "; ".join([*parts, *([f"all of {', '.join(map(method_label, whole))}"] if whole else [])])


def verdict_tables(verdicts: Sequence[Verdict], *, confidence: float = 0.95) -> Html:
    """One table a claim; under each row the sentence of its verdict. ``confidence``: of the intervals."""
    parts = []
    header = [column.format(level=100 * confidence) for column in COLUMNS]
    for letter, title, rows in grouped(verdicts):
        parts.append(element("h3", f"Claim {letter}: {title[:1].upper()}{title[1:]}"))
        lines = [line for verdict in rows for line in _lines(verdict)]
        parts.append(table(header, lines, wide=True))
    return join(parts, "\n")


def _lines(verdict: Verdict) -> tuple[Html, Html]:
    levels = f"{number(verdict.baseline_value)} → {number(verdict.trained_value)}"
    levels = DASH if levels == f"{DASH} → {DASH}" else levels
    cells = (
        f"{method_label(verdict.learner)} against {_baseline(verdict)}",
        verdict.steps,
        verdict.comparison + (" (rho)" if verdict.quantity in ("rho", "rho_normalised") else ""),
        element("span", levels, css="num"),
        element("span", _effect(verdict), css="num"),
        element("span", interval(verdict.bootstrap_low, verdict.bootstrap_high), css="num"),
        number(verdict.margin if verdict.predicted == "positive" else -verdict.margin, signed=True),
        _size(verdict),
        badge(verdict.outcome),
    )
    words = element("tr", element("td", element("div", verdict.sentence), colspan=str(len(COLUMNS))), css="sentence")
    return row(cells), words


def _baseline(verdict: Verdict) -> str:
    """Only the claim on SHOT has a learner for its baseline; any learner may be called "untrained"."""
    if verdict.claim == "shot":
        return method_label(verdict.baseline)
    return "orthogonal gradients" if verdict.baseline == "0" else "its untrained start"


def _effect(verdict: Verdict) -> Html:
    """The effect over its interval, or in words why there is none."""
    if isnan(verdict.effect):
        return join([_nothing(verdict)])
    unit = "" if verdict.units == "1" else f" {verdict.units}"
    effect = element("b", number(verdict.effect, signed=True) + unit)
    return join([effect, Html("<br>"), interval(verdict.low, verdict.high)])


def _nothing(verdict: Verdict) -> str:
    """Why there is nothing to compare: a margin, a share of the baseline, is known unless no unit was left."""
    if verdict.comparison == "equal support loss" and not isnan(verdict.margin):
        return "no overlap in loss" if verdict.share_compared == 0 else "too little overlap in loss"
    if verdict.obstacle:
        return verdict.obstacle.split(";")[0]
    return "all units diverged" if verdict.num_diverged else "nothing to compare"


def _size(verdict: Verdict) -> str:
    nothing = isnan(verdict.effect)
    parts = [] if nothing else [f"{verdict.num_seeds} {TIMES} {verdict.num_tasks}"]
    if verdict.num_diverged:
        parts.append(f"{verdict.num_diverged} diverged")
    if verdict.num_undefined:
        parts.append(f"{verdict.num_undefined} without a gradient")
    if (0 if nothing else -1) < verdict.share_compared < 1:
        share = f"{100 * verdict.share_compared:.0f} %"
        parts.append(f"{share} of points {'have a match' if nothing else 'compared'}")
    return "; ".join(parts) or DASH


def badge(outcome: str) -> Html:
    """The outcome as text; its colour only repeats it."""
    return element("span", outcome, css=f"badge {outcome.split()[0]}")


def _against(verdict: Verdict) -> str:
    return "the learner without SHOT" if verdict.claim == "shot" else "untrained"
