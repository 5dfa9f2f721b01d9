"""The verdicts of a report: a summary in words, and a table for each claim.

A verdict judges a claim by one comparison, such as that of a learner with its own untrained start.
"""

from collections import Counter
from collections.abc import Sequence
from math import isnan

from analysis.claims.answers import summary
from analysis.claims.sentence import against_untrained, measure
from analysis.claims.verdict import OUTCOMES, Verdict, counted, final_outcome
from analysis.drawing.style import method_label
from analysis.report.page import DASH, TIMES, Html, bullets, element, interval, join, number, row, table

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WITHOUT_SHOT = ("shot", "shot-hg")  # the claims whose raw comparison has the learner without SHOT as its baseline
COLUMNS = (
    "Learner against baseline",
    "Outcome",  # beside the name, where it is seen on a phone without scrolling the table sideways
    "Where",
    "Comparison",
    "Baseline, trained",
    "Effect, {level:g} % interval over seeds",
    "Bootstrap over tasks",
    "Smallest effect of interest",
    f"Seeds {TIMES} tasks",
    "p, after Holm",
)


def verdicts_by_claim(verdicts: Sequence[Verdict]) -> list[tuple[str, str, list[Verdict]]]:
    """A letter, the title and the verdicts of each claim, in the order in which the claims appear."""
    claims = dict.fromkeys(verdict.claim for verdict in verdicts)
    groups = [(letter, [v for v in verdicts if v.claim == claim]) for letter, claim in zip(LETTERS, claims)]  # noqa: B905 (most letters are left over)
    return [(letter, rows[0].title, rows) for letter, rows in groups]


# ---- the summary

# The largest numbers of comparisons of a claim whose names, and whose means, the summary gives. The table has all of
# them, and on a phone longer lists fill screen after screen.
MAX_NAMED, MAX_LEVELS = 8, 24


def answer(verdicts: Sequence[Verdict], learners: Sequence[str] | None = None) -> Html:
    """What the study found: three sentences on the main questions, then a list of the outcomes by claim."""
    if not verdicts:
        return element("p", "No verdict was made: this study has no comparison to judge.")
    return join(
        [
            *(element("p", sentence, css="lead") for sentence in summary(verdicts, learners)),
            bullets(_claim_summary(*group) for group in verdicts_by_claim(verdicts)),
        ]
    )


def _claim_summary(letter: str, title: str, verdicts: list[Verdict]) -> Html:
    """How many comparisons of a claim have each outcome, with remarks on them, and the means that were compared.

    The outcome of a primary comparison is that after Holm's correction.
    """
    parts = []
    for outcome in OUTCOMES:
        alike = [verdict for verdict in verdicts if final_outcome(verdict) == outcome]
        if not alike:
            continue
        if len(alike) < len(verdicts):
            named = [_places(alike, verdicts)] if len(verdicts) <= MAX_NAMED else []
            count, remarks = f"{len(alike)} of {len(verdicts)} comparisons", named
        else:
            count, remarks = "the only comparison" if len(alike) == 1 else f"all {len(alike)} comparisons", []
        if lost := _without_correction(alike):
            remarks.append(lost)
        # Two seeds are the smallest number that can decide, and they can agree by luck.
        num_of_two_seeds = sum(verdict.num_seeds == 2 for verdict in alike) if outcome != "inconclusive" else 0
        if num_of_two_seeds == len(alike):
            remarks.append("from two seeds; add seeds before relying on it")
        elif num_of_two_seeds:
            them = "it" if num_of_two_seeds == 1 else "them"
            remarks.append(f"{num_of_two_seeds} of these from two seeds; add seeds before relying on {them}")
        head = element("b", f"{outcome} in {count}")
        parts.append(join([head, f" ({'; '.join(remarks)})"]) if remarks else head)
    levels = _levels(verdicts) if len(verdicts) <= MAX_LEVELS else ""
    rest = "" if len(verdicts) <= MAX_NAMED else " The table below has all of them."
    return join([element("b", f"Claim {letter}"), f" ({title}): ", join(parts, ", "), ". ", f"{levels}{rest}".strip()])


def _without_correction(verdicts: Sequence[Verdict]) -> str:
    """How many of these comparisons, which have one outcome, only Holm's correction made inconclusive; "" if none."""
    lost = sum(verdict.outcome != final_outcome(verdict) for verdict in verdicts)
    if not lost:
        return ""
    which = "all" if lost == len(verdicts) else str(lost)
    return f"{'it' if len(verdicts) == 1 else f'{which} of these'} would be supported without the correction"


def _levels(verdicts: Sequence[Verdict]) -> str:
    """Sentences with the means of baseline and learner over the seeds.

    They are the means of the raw comparisons or, in the claim on alignment, of those against the untrained network.
    """
    shown = [v for v in verdicts if v.comparison in ("raw", "against untrained") and not isnan(v.effect)]
    sentences = []
    for steps, quantity in dict.fromkeys((v.steps, measure(v)) for v in shown):
        alike = [v for v in shown if (v.steps, measure(v)) == (steps, quantity)]
        levels = "; ".join(f"{method_label(v.learner)} {_change(v)}" for v in alike)
        baseline = "the learner without SHOT" if shown[0].claim in WITHOUT_SHOT else "untrained"
        name = quantity.removeprefix("the ")
        sentences.append(f"Mean {name}, {steps} ({baseline} → learner): {levels}.")
    return " ".join(sentences)


def _places(verdicts: Sequence[Verdict], claim_verdicts: Sequence[Verdict]) -> str:
    """The names of the given comparisons: 'MAML: step 0 raw, step 0 at equal support loss; all of FOMAML'.

    verdicts: the verdicts on the given comparisons. claim_verdicts: all verdicts on the claim. If all of a learner's
        comparisons in the claim are among the given ones, they are named together, as 'all of FOMAML'.
    """
    num_in_claim = Counter(verdict.learner for verdict in claim_verdicts)
    num_given = Counter(verdict.learner for verdict in verdicts)
    complete = [learner for learner, num in num_given.items() if num == num_in_claim[learner] > 1]
    places: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.learner in complete:
            continue
        place: str = verdict.comparison
        # The comparisons "against orthogonal" and "against untrained" take all steps together and name none.
        if verdict.steps not in ("", "all steps"):
            place = f"{verdict.steps} at {place}" if place.startswith(("unit", "equal")) else f"{verdict.steps} {place}"
        places.setdefault(method_label(verdict.learner), []).append(place)
    parts = [f"{learner}: {', '.join(where)}" for learner, where in places.items()]
    return "; ".join([*parts, *([f"all of {', '.join(map(method_label, complete))}"] if complete else [])])


# ---- the tables

# The largest number of comparisons whose table is open when the page is opened. Open, the tables of a study of twelve
# learners fill a hundred screens of a phone, between the figures and the sections below.
MAX_OPEN = 12


def verdict_tables(verdicts: Sequence[Verdict], *, confidence: float = 0.95) -> Html:
    """A table for each claim, in which a verdict has a row of numbers and, below it, its sentence, folded.

    A table of many verdicts is folded as a whole, below a line that counts the outcomes after Holm's correction.
    """
    header = [column.format(level=100 * confidence) for column in COLUMNS]
    parts = []
    for letter, title, rows in verdicts_by_claim(verdicts):
        parts.append(element("h3", f"Claim {letter}: {title[:1].upper()}{title[1:]}"))
        lines = table(header, [line for verdict in rows for line in _lines(verdict)], wide=True)
        if len(rows) > MAX_OPEN:
            lost = _without_correction([verdict for verdict in rows if final_outcome(verdict) == "inconclusive"])
            # The inconclusive comparisons are counted last, so the remark stands beside their number.
            counts = f"{len(rows)} comparisons: {counted(rows)}{f' ({lost})' if lost else ''}"
            lines = element("details", element("summary", counts), lines)
        parts.append(lines)
    return join(parts, "\n")


def _lines(verdict: Verdict) -> tuple[Html, Html]:
    """The row of numbers of a verdict and the row of its sentence."""
    levels = _change(verdict)
    # Most verdicts are on alpha rho, which needs no remark.
    quantity = {"rho": " (rho)", "rho_normalised": " (rho)", "hg_ratio": " (|Hg| / |g|)"}.get(verdict.quantity, "")
    cells = (
        _sides(verdict),
        _outcome(verdict),
        verdict.steps or DASH,
        verdict.comparison + (f" ({verdict.measure})" if verdict.measure else quantity),
        element("span", DASH if levels == f"{DASH} → {DASH}" else levels, css="num"),
        element("span", _effect(verdict), css="num"),
        element("span", interval(verdict.bootstrap_low, verdict.bootstrap_high), css="num"),
        number(verdict.margin if verdict.predicted == "positive" else -verdict.margin, signed=True),
        _size(verdict),
        element("span", _p_values(verdict), css="num"),
    )
    # Folded, because a study has hundreds of sentences, which say what the row above them says.
    words = element("details", element("summary", "in words"), verdict.sentence)
    sentence = element("td", element("div", words), colspan=str(len(COLUMNS)))
    return row(cells), element("tr", sentence, css="verdict-sentence")


def _sides(verdict: Verdict) -> str:
    """The learner, and what it is compared with."""
    learner = method_label(verdict.learner)
    if verdict.baseline == "0":
        return f"{learner} against orthogonal gradients"
    # The code does not ask for the baseline's name, because a learner may have any name, even "untrained".
    if against_untrained(verdict):
        return f"{learner} against its untrained start"
    if not verdict.baseline:
        return learner
    # ``against`` is the baseline in words, if another learner's name does not say it.
    if verdict.against in ("", f"for {verdict.baseline}"):
        return f"{learner} against {method_label(verdict.baseline)}"
    return f"{learner} against the value {verdict.against}"


def _p_values(verdict: Verdict) -> str:
    """The p-value and, for a primary verdict, the one after Holm's correction."""
    if isnan(verdict.p):
        return DASH
    corrected = "" if isnan(verdict.p_corrected) else f" → {number(verdict.p_corrected, digits=2)}"
    return number(verdict.p, digits=2) + corrected


def _outcome(verdict: Verdict) -> Html:
    """The outcome as a badge and, below it, the outcome after Holm's correction for many comparisons, if it differs.

    An obstacle follows where numbers stand beside the outcome. Where there are none, it stands in their place.
    """
    # The class gives the badge a colour, which only repeats what its text says.
    parts: list[Html | str] = [element("span", verdict.outcome, css=f"badge {verdict.outcome.split()[0]}")]
    if final_outcome(verdict) != verdict.outcome:
        parts.append(f"{final_outcome(verdict)} after the correction")
    if verdict.obstacle and not isnan(verdict.effect):
        parts.append(verdict.short_obstacle)
    return join(parts, "<br>")


def _change(verdict: Verdict) -> str:
    """The mean of the baseline, and that of the trained learner."""
    return f"{number(verdict.baseline_value)} → {number(verdict.trained_value)}"


def _effect(verdict: Verdict) -> Html:
    """The effect and, below it, its interval; or the reason why there is no effect."""
    if not isnan(verdict.effect):
        unit = "" if verdict.units == "1" else f" {verdict.units}"
        effect = element("b", number(verdict.effect, signed=True) + unit)
        return join([effect, Html("<br>"), interval(verdict.low, verdict.high)])
    # The margin is a fraction of the baseline's mean |value|, so it is NaN only if no unit (one task of one seed) was
    # left. If there is a margin but no effect, the losses of the two sides overlap too little.
    if verdict.comparison == "equal support loss" and not isnan(verdict.margin):
        return join(["no overlap in loss" if verdict.share_compared == 0 else "too little overlap in loss"])
    if verdict.obstacle:
        return join([verdict.short_obstacle])
    return join(["all units diverged" if verdict.num_diverged else "nothing to compare"])


def _size(verdict: Verdict) -> str:
    """How many seeds and tasks an effect rests on, and how many units (one task of one seed) were left out and why."""
    has_effect = not isnan(verdict.effect)
    parts = [f"{verdict.num_seeds} {TIMES} {verdict.num_tasks}"] if has_effect else []
    if verdict.num_diverged:
        parts.append(f"{verdict.num_diverged} diverged")
    if verdict.num_undefined:
        parts.append(f"{verdict.num_undefined} with a gradient of zero")
    share = f"{100 * verdict.share_compared:.0f} % of points"
    if has_effect and verdict.share_compared < 1:
        parts.append(f"{share} compared")
    if not has_effect and 0 < verdict.share_compared < 1:
        parts.append(f"{share} have a match")
    return "; ".join(parts) or DASH
