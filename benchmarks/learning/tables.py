"""Tables of the page, as lines of Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.learning.figures import TITLES, Results, rows_of, trials_of
from benchmarks.learning.settings import EPOCH

LEVELS = {"quickdraw": (0.40, 0.45, 0.50), "cifar-fs": (0.31, 0.32, 0.34)}
ABSENT = "-"


def learners(results: Results) -> list[str]:
    """Test accuracy seed by seed, SHOT's paired difference, and what training cost."""
    seeds = results["seeds"]
    head = ["learner", *(f"test, seed {s}" for s in seeds), *(f"SHOT's difference, seed {s}" for s in seeds), "CPU s"]
    return [*_table(head, [_learner_row(results, name) for name in _names(results)]), "", counted(results), ""]


def counted(results: Results) -> str:
    """How many of SHOT's differences their intervals tell from 0, and whether seeds agree, in one sentence."""
    found = [trial for trial in results["trials"] if "difference" in trial]
    gains, losses = (sum(sign * t["difference"][0] > t["difference"][1] for t in found) for sign in (1, -1))
    text = f"Of SHOT's differences ({len(found)}), {gains} lie above 0 by their interval over tasks, {losses} below"
    names = {trial["name"] for trial in found}
    if len(found) == len(names):
        return f"{text}; with one seed that is not evidence on learners."
    signs = [[t["difference"][0] > 0 for t in found if t["name"] == name] for name in names]
    several = [of_seeds for of_seeds in signs if len(of_seeds) > 1]
    agreeing = sum(len(set(of_seeds)) == 1 for of_seeds in several)
    return f"{text}; their signs agree between the seeds for {agreeing} of {len(several)} learners."


def to_accuracy(results: Results) -> list[str]:
    """The meta-iteration at which validation first reaches a level, without and with SHOT."""
    levels = LEVELS[results["experiment"]]
    named = [name for name in results["setting"]["with_shot"] if trials_of(results, f"{name}-shot")]
    head = ["learner", "seed", *(f"{100 * level:.0f} %" for level in levels)]
    rows = [
        [TITLES[name], str(seed), *(_pair(results, name, seed, level) for level in levels)]
        for name in named
        for seed in results["seeds"]
    ]
    text = [
        f"Meta-iterations to a validation accuracy, without -> with SHOT, linear between checkpoints ({ABSENT}: not",
        f"reached). Noise crosses levels too: a single checkpoint is known to about +- {_typical(results):.1f} points.",
        "",
    ]
    return [*text, *_table(head, rows), ""]


def step_sizes(results: Results) -> list[str]:
    """What was tried, and chosen."""
    found = {name: each for name, each in results["step_sizes"].items() if each["tried"]}
    candidates = sorted({alpha for each in found.values() for alpha in each["tried"]}, key=float)
    head = ["validation accuracy by step size", *candidates, "chosen"]
    rows = [
        [TITLES[name], *(f"{100 * each['tried'][a]:.1f}" for a in candidates), f"{each['step_size']:g}"]
        for name, each in found.items()
    ]
    setting = results["setting"]
    text = f"Inner step sizes, chosen after {setting['tuning_steps']} outer steps of another seed, without SHOT:"
    return [text, "", *_table(head, rows), ""]


def one_run(results: Results) -> list[str]:
    """Test accuracy, what was seen and what it cost; a second part's line counts its own tasks and time."""
    head = ["", "seed", "outer step", "best validation", "test", "training tasks", "CPU min", "wall min"]
    rows = []
    for trial in results["trials"]:
        curve = rows_of(results, trial)
        tasks = curve[-1]["meta_step"] * trial["meta_batch"]
        minutes = [f"{curve[-1][name] / 60:.1f}" for name in ("cpu_seconds", "wall_seconds")]
        best = next(row for row in curve if row["meta_step"] == trial["judged_at"])
        outer = f"Adam {trial['optimiser'][1]:g}, {trial['meta_batch']} tasks"
        found = [percent(best), percent(trial["test"]), str(tasks), *minutes]
        rows.append([_title(trial["name"]), str(trial["seed"]), outer, *found])
    untrained = f"Untrained, on the validation tasks: {percent(rows_of(results, results['trials'][0])[0])}."
    return [*_table(head, rows), "", untrained, ""]


def regression(results: Results) -> list[str]:
    """Squared error on new tasks after the last outer step."""
    last = results["setting"]["meta_steps"]
    head = [
        "learner",
        "seed",
        f"query squared error, epoch {last // EPOCH}",
        "SHOT's difference",
        "untrained (validation)",
        "CPU s",
    ]
    rows = [
        [
            _title(trial["name"]),
            str(trial["seed"]),
            f"{trial['test']['loss']:.2f} +- {trial['test']['loss_half']:.2f}",
            "{:+.2f} +- {:.2f}".format(*trial["difference"]) if "difference" in trial else "",
            f"{rows_of(results, trial)[0]['loss']:.1f}",
            f"{rows_of(results, trial)[-1]['cpu_seconds']:.0f}",
        ]
        for trial in sorted(results["trials"], key=lambda t: (t["name"], t["seed"]))
    ]
    return [*_table(head, rows), ""]


def across_sets(results: Results) -> list[str]:
    """A line a learner, a column a pair of sets; the seeds' mean, with the interval of each over its tasks."""
    pairs = list(dict.fromkeys((row["trained_on"], row["judged_on"]) for row in results["trials"]))
    names = list(dict.fromkeys(row["name"] for row in results["trials"]))
    head = ["learner", *(f"{a} to {b}" for a, b in pairs)]
    rows = [[_title(name), *(_across(results, name, pair) for pair in pairs)] for name in names]
    return [*_table(head, rows), ""]


def percent(found: Any) -> str:
    """An accuracy with its half-interval."""
    return f"{100 * found['accuracy']:.1f} +- {100 * found['accuracy_half']:.1f}"


def _learner_row(results: Results, name: str) -> list[str]:
    of_seed = {trial["seed"]: trial for trial in trials_of(results, name)}
    found = [of_seed.get(seed) for seed in results["seeds"]]
    tests = [_tested(trial) if trial else ABSENT for trial in found]
    gains = [_signed(trial["difference"]) if trial and "difference" in trial else "" for trial in found]
    ended = [trial for trial in of_seed.values() if trial["diverged_at"] is None]
    seconds = [rows_of(results, trial)[-1]["cpu_seconds"] for trial in ended]
    return [_title(name), *tests, *gains, f"{sum(seconds) / len(seconds):.0f}" if seconds else ABSENT]


def _tested(trial: Mapping[str, Any]) -> str:
    if trial["diverged_at"] is not None:
        return f"diverged at outer step {trial['diverged_at']}"
    return percent(trial["test"])


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(trial["name"] for trial in results["trials"]))


def _signed(difference: Sequence[float]) -> str:
    mean, half = difference
    return f"{100 * mean:+.1f} +- {100 * half:.1f}"


def _title(name: str) -> str:
    words = {"shot": " + SHOT", "finish": ", second part"}
    learner, _, ending = name.rpartition("-")
    return TITLES[learner] + words[ending] if ending in words else TITLES[name]


def _pair(results: Results, name: str, seed: int, level: float) -> str:
    return " -> ".join(_reached(results, each, seed, level) for each in (name, f"{name}-shot"))


def _reached(results: Results, name: str, seed: int, level: float) -> str:
    for trial in trials_of(results, name):
        if trial["seed"] == seed:
            if trial["diverged_at"] is not None:
                return "diverged"
            found = crossing([(row["meta_step"], row["accuracy"]) for row in rows_of(results, trial)], level)
            return ABSENT if found is None else f"{found:.0f}"
    return ABSENT


def crossing(points: Sequence[tuple[int, float | None]], level: float) -> float | None:
    """Where a broken line first reaches a level; None where it never does.

    >>> crossing([(0, 0.2), (10, 0.4), (20, 0.5)], 0.3)
    5.0
    """
    known = [(step, value) for step, value in points if value is not None]
    if known and known[0][1] >= level:
        return float(known[0][0])
    for (a, low), (b, high) in pairwise(known):
        if high >= level:
            return a + (b - a) * (level - low) / (high - low)
    return None


def _typical(results: Results) -> float:
    halves = [row["accuracy_half"] for trial in results["trials"] for row in rows_of(results, trial)]
    known = [half for half in halves if half is not None]
    return 100 * sum(known) / len(known)


def _across(results: Results, name: str, pair: tuple[str, str]) -> str:
    found = [r for r in results["trials"] if r["name"] == name and (r["trained_on"], r["judged_on"]) == pair]
    return ", ".join(percent(row["test"]) for row in found) or ABSENT


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
