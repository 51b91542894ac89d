"""What a sweep found and how sure it is, in plain sentences."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from swav_ray.tune.leaderboard import text
from swav_ray.tune.results import Result, accuracy, objectives, ranked
from swav_ray.tune.space import Space

CLEAR = 2.0  # standard errors of a difference, from where two accuracies are called different
MEASURE = {"probe/top1": "linear-probe accuracy", "knn/top1": "kNN accuracy"}
COLLAPSE = ("collapsed", "stuck", "diverged")  # verdicts of the watch that end a trial


def findings(rows: list[Result], space: Space, baselines: list[dict[str, Any]]) -> list[str]:
    """Paragraphs of plain text: what was found, against what, what was stopped or failed and why, what to run next."""
    best = ranked(rows)
    found = [_found(best, space), _against(best, rows, baselines, space)] if best else [_nothing(rows)]
    return [paragraph for paragraph in (*found, _ended(rows), _next(best, rows)) if paragraph]


def apart(one: Result, two: Result) -> float | None:
    """The difference of two accuracies in standard errors of the difference; None if an error is unknown.

    The errors are taken as independent. Both were scored on the same images, so this says "cannot be told apart" rather too
    often than too seldom.
    """
    if one.value is None or two.value is None or one.stderr is None or two.stderr is None:
        return None
    error = math.hypot(one.stderr, two.stderr)
    return (one.value - two.value) / error if error > 0 else None


def settings_text(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {text(value)}" for key, value in settings.items()) or "nothing varied"


def score(result: Result) -> str:
    error = f" ± {result.stderr:.4f}" if result.stderr is not None else ""
    return "no accuracy" if result.value is None else f"{result.value:.4f}{error}"


def _found(best: list[Result], space: Space) -> str:
    first, measure = best[0], MEASURE.get(accuracy(space), accuracy(space))
    lines = [
        f"The best configuration so far is {first.name}: {settings_text(first.settings)}. Its {measure} on held-out training "
        f"images is {score(first)} (one standard error)."
    ]
    if len(best) == 1:
        lines.append("It is the only trial that ran to its end, so there is nothing to compare it with.")
    else:
        lines.append(f"The runner-up is {best[1].name} with {score(best[1])}: {_gap(first, best[1])}.")
        near = [row for row in best[1:] if (distance := apart(first, row)) is not None and distance < CLEAR]
        if len(near) > 1:
            lines.append(
                f"{len(near)} of the {len(best) - 1} other complete trials lie within {CLEAR:g} standard errors of the best."
            )
    if len(objectives(space)) > 1:
        lines.append("Cost was an objective too: trials marked pareto are those that no other beats in all objectives.")
    return " ".join(lines)


def _against(best: list[Result], rows: list[Result], baselines: list[dict[str, Any]], space: Space) -> str:
    first, lines = best[0], []
    own = [row for row in rows if row.attrs.get("baseline")]
    complete = [row for row in best if row.attrs.get("baseline")]
    if first.attrs.get("baseline"):
        lines.append(f"{first.name} is a baseline of this sweep: no sampled configuration came out above it.")
    elif complete:
        lines.append(f"Against the baseline ({complete[0].name}, {score(complete[0])}): {_gap(first, complete[0])}.")
    elif own:
        lines.append(f"The baseline ({own[0].name}) is {own[0].status}, so there is no gap to it yet.")
    scale = [(base["name"], base[accuracy(space)]) for base in baselines if base.get(accuracy(space)) is not None]
    if scale:
        lines.append(f"For scale, the same measure gives {' and '.join(f'{value:.4f} on {name}' for name, value in scale)}.")
        if (first.value or 0.0) <= max(value for _, value in scale):
            lines.append("The best trial is not above that, so nothing shows that these runs have learnt anything of use.")
    if len(best) > 1:
        lines.append(
            f"The best of {len(best)} is chosen by the very figure quoted, which flatters it a little; the error is that of "
            "the held-out images alone, and another seed moves the accuracy too."
        )
    return " ".join(lines)


def _gap(first: Result, second: Result) -> str:
    distance, difference = apart(first, second), (first.value or 0.0) - (second.value or 0.0)
    if distance is None:
        return f"{difference:+.4f}, of unknown error"
    size = f"{difference:+.4f}, {distance:.1f} standard errors of the difference"
    return size if distance >= CLEAR else f"{size}; these cannot be told apart"


def _nothing(rows: list[Result]) -> str:
    if not rows:
        return "No trial has been started."
    running = [row for row in rows if row.status in ("running", "waiting")]
    if running:
        return f"No trial has come to its end yet; {_count(running)} still running."
    return "No trial came to its end, so there is no best configuration."


def _ended(rows: list[Result]) -> str:
    pruned = [row for row in rows if row.status == "pruned"]
    failed = [row for row in rows if row.status == "failed"]
    complete = sum(row.status == "complete" for row in rows)
    if not rows:
        return ""
    sick = [row for row in pruned if row.attrs.get("verdict") in COLLAPSE]
    lines = [f"Of {len(rows)} trial{'s' * (len(rows) != 1)}, {complete} ran to the end."]
    if pruned:
        parts = [f"{len(pruned) - len(sick)} at a rung, where others were ahead"] if len(sick) < len(pruned) else []
        parts += [f"{count} as {verdict}" for verdict, count in Counter(row.attrs["verdict"] for row in sick).items()]
        lines.append(f"{_count(pruned, 'was', 'were')} stopped early ({', '.join(parts)}).")
    if failed:
        reasons = Counter(_short(row.reason or "no reason recorded") for row in failed)
        told = "; ".join(f"{reason}{f' ({count} times)' if count > 1 else ''}" for reason, count in reasons.most_common(3))
        lines.append(f"{_count(failed, '', '').strip()} failed: {told}{'; ...' if len(reasons) > 3 else ''}.")
    running = [row for row in rows if row.status in ("running", "waiting")]
    if running and complete:
        lines.append(f"{_count(running)} still running: this page is a snapshot.")
    return " ".join(lines)


def _next(best: list[Result], rows: list[Result]) -> str:
    if any(row.status in ("running", "waiting") for row in rows):
        return "Next: run the same command again if the sweep is not running any more; it goes on where it stood."
    if not rows:
        return ""
    if not best:
        return "Next: mend what the reasons name, or stop fewer trials early, and run the sweep under another name."
    return (
        "Next: swav-ray tune confirm SPACE (this sweep's file) trains the best and the baseline again over seeds and scores "
        "them on the test images, which no trial has seen. Until then the ranking is a guess as good as its errors."
    )


def _count(rows: list[Result], one: str = "is", more: str = "are") -> str:
    return f"{len(rows)} {one if len(rows) == 1 else more}"


def _short(reason: str, length: int = 160) -> str:
    return reason if len(reason) <= length else reason[: length - 3] + "..."
