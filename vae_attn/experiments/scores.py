"""Scores as rows of a table: what each is called, what it needs, and how it is computed."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

STD = "_std"  # appended to a score's name: its standard deviation over seeds
LOW, HIGH = "_low", "_high"  # appended: the ends of its bootstrap interval


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Score:
    """A row.

    Attributes:
      name: in `metrics.json`.
      needs: the kind of record that `function` takes, such as `masks` or `points`; a score whose
        need a run cannot meet is left out.
      function: from that record to the score, or to several of them by what is appended to the
        name; None or NaN where it is undefined.
      heading: of its column in tables; empty for none.
      note: what the heading leaves open, to stand under the table.
      interval: from the record to the ends of its confidence interval, if there is one.
      references: values of others, by the column that they stand in; there, where a score has
        several, by what they are of, such as a category.
    """

    name: str
    needs: str
    function: Callable[[Any], float | Mapping[str, float] | None]
    heading: str = ""
    note: str = ""
    interval: Callable[[Any], Interval | None] | None = None
    references: Mapping[str, str | Mapping[str, str | float]] = dataclasses.field(
        default_factory=dict
    )


def compute(rows: Iterable[Score], records: Mapping[str, Callable[[str], Any]]) -> dict[str, float]:
    """The scores whose needs are met, with the ends of their intervals.

    Args:
      rows: which to compute.
      records: by need; called with the score's name, which seeds its randomness, so that another
        score beside it changes nothing.

    Returns:
      Finite scores by name, in the order of the rows.
    """
    found: dict[str, float] = {}
    for row in rows:
        if row.needs not in records:
            continue
        record = records[row.needs](row.name)
        value = row.function(record)
        parts = value if isinstance(value, Mapping) else {"": value}
        names = {f"{row.name}_{part}".rstrip("_"): one for part, one in parts.items()}
        found |= {name: float(one) for name, one in names.items() if one is not None}
        if row.name in found and row.interval and (ends := row.interval(record)) is not None:
            found |= {row.name + LOW: ends.low, row.name + HIGH: ends.high}
    # A score is undefined where the sample has images of one kind only.
    return {name: value for name, value in found.items() if np.isfinite(value)}


def over_seeds(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score, and as `<score>_std` its standard deviation (of the sample, n - 1).

    Bootstrap intervals belong to a single run and are left out, and so is a score that a seed
    lacks.

    Args:
      scores: of two or more seeds.
    """
    summary, each = {}, list(scores)
    for name in each[0]:
        values = [one[name] for one in each if name in one]
        if len(values) == len(each) and not name.endswith((LOW, HIGH)):
            summary[name] = float(np.mean(values))
            summary[name + STD] = float(np.std(values, ddof=1))
    return summary


def count(metrics: Mapping[str, float], name: str) -> str:
    """A number of things; of several seeds mean ± standard deviation."""
    if name + STD in metrics:
        return f"{metrics[name]:.1f} ± {metrics[name + STD]:.1f}"
    return f"{metrics[name]:.0f}"


def cell(metrics: Mapping[str, float], name: str, *, interval: bool = False) -> str:
    """A score with three digits; of several seeds mean ± standard deviation; or nothing.

    Args:
      metrics: scores by name.
      name: of the score.
      interval: whether its bootstrap interval follows in brackets, if there is one.
    """
    if name not in metrics:
        return ""
    text = f"{metrics[name]:.3f}"
    if name + STD in metrics:
        text += f" ± {metrics[name + STD]:.3f}"
    if interval and name + LOW in metrics:
        text += f" [{metrics[name + LOW]:.3f}, {metrics[name + HIGH]:.3f}]"
    return text
