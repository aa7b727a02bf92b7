"""Objectives side by side: means over seeds, paired tests, and which measures rank the models."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from vae_attn.reporting import figures
from vae_attn.reporting.tables import Table

# The scores that are shown, and by which models are ranked.
SHOWN = (
    "factor_vae",
    "mig",
    "dci_disentanglement",
    "infomec_modularity",
    "infomec_explicitness",
    "infomec_compactness",
)
RANKED_BY = ("mig", "dci_disentanglement", "infomec_modularity")
# What is paid, and whether the training did what it is meant to.
BESIDE = (
    "reconstruction",
    "kl",
    "active_latents",
    "gaussian_total_correlation",
    "total_correlation",
    "discriminator_accuracy",
    "smallest_deviation",
    "largest_deviation",
    "empty_maps",
)


# What is drawn over the steps, with the title of its panel.
DRAWN = {
    "reconstruction": "reconstruction, nats, after a tenth",
    "kl": "KL, nats",
    "total_correlation": "total correlation as estimated, nats",
    "gaussian_total_correlation": "its Gaussian part, nats",
    "factor_vae": "FactorVAE score",
    "mig": "MIG",
}
_LATE = ("reconstruction",)  # at first it is many times what it becomes


@dataclasses.dataclass(frozen=True)
class Scored:
    """A model at one step of its training.

    Attributes:
      objective: its name.
      seed: of the run.
      step: after which it was scored.
      scores: by name; measures without labels among them.
    """

    objective: str
    seed: int
    step: int
    scores: dict[str, float]


def tables(models: Sequence[Scored], *, baseline: str) -> list[Table]:
    """All that is reported of the models.

    Args:
      models: of every objective, seed and step.
      baseline: the objective that the others are compared with.
    """
    last = max(one.step for one in models)
    return [
        _over_steps(models),
        _means(models, last, "Scores", SHOWN),
        _means(models, last, "What is paid and what is seen", BESIDE),
        _paired(models, last, baseline),
        _ranks(models, last),
    ]


def figure(trained: Sequence[Scored], models: Sequence[Scored]) -> Figure:
    """Means over the seeds that have come to a step, in pale each seed alone.

    Args:
      trained: of every objective, seed and logged step, the means since the one before.
      models: those that were scored.
    """
    objectives, panels = _objectives(trained), {}
    last = max(one.step for one in trained)
    for name, title in DRAWN.items():
        found = trained if any(name in one.scores for one in trained) else models
        found = [one for one in found if name not in _LATE or one.step > last / 10]
        lines = [
            _line([one for one in found if one.objective == objective], name, objective, f"C{n}")
            for n, objective in enumerate(objectives)
        ]
        panels[title] = [line for line in lines if line.x]
    return figures.line_panels(panels, x_label="step", rows=2, legend_beside=True)


def _line(models: Sequence[Scored], name: str, label: str, colour: str) -> figures.Line:
    by_step: dict[int, dict[int, float]] = {}
    for one in sorted(models, key=lambda one: one.step):
        if name in one.scores:
            by_step.setdefault(one.step, {})[one.seed] = one.scores[name]
    means = [float(np.mean(list(of_seeds.values()))) for of_seeds in by_step.values()]
    pale = []
    for seed in sorted({seed for of_seeds in by_step.values() for seed in of_seeds}):
        steps = [step for step, of_seeds in by_step.items() if seed in of_seeds]
        pale.append((steps, [by_step[step][seed] for step in steps]))
    return figures.Line(
        list(by_step), means, label=label, colour=colour, pale=pale if len(pale) > 1 else ()
    )


def paired(
    models: Sequence[Scored], *, objective: str, baseline: str, step: int, score: str
) -> tuple[float, float, int]:
    """Mean difference to the baseline over the seeds that both have, p of a paired t-test, seeds.

    p is NaN of fewer than two seeds, or where all differences are the same.
    """
    first, second = (
        {m.seed: m.scores[score] for m in _at(models, name, step) if score in m.scores}
        for name in (objective, baseline)
    )
    seeds = sorted(first.keys() & second.keys())
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    if len(seeds) < 2 or np.ptp(differences) == 0:
        return float(differences.mean()) if seeds else np.nan, np.nan, len(seeds)
    test = scipy.stats.ttest_1samp(differences, 0)
    return float(differences.mean()), float(test.pvalue), len(seeds)


def rank_correlation(
    models: Sequence[Scored], *, measure: str, score: str
) -> tuple[float, float, int]:
    """Spearman's correlation of a measure without labels with a score, its p, and of how many.

    NaN of fewer than three models, or where one of both is the same for all.
    """
    pairs = [
        (m.scores[measure], m.scores[score]) for m in models if {measure, score} <= m.scores.keys()
    ]
    if len(pairs) < 3 or any(np.ptp(values) == 0 for values in zip(*pairs, strict=True)):
        return np.nan, np.nan, len(pairs)
    found = scipy.stats.spearmanr(*zip(*pairs, strict=True))
    return float(found.statistic), float(found.pvalue), len(pairs)


def _at(models: Sequence[Scored], objective: str, step: int) -> list[Scored]:
    return [one for one in models if one.objective == objective and one.step == step]


def _objectives(models: Sequence[Scored]) -> list[str]:
    return list(dict.fromkeys(one.objective for one in models))


def _cell(models: Sequence[Scored], score: str) -> str:
    """Mean and, of two or more, the sample's standard deviation."""
    values = [one.scores[score] for one in models if score in one.scores]
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def _over_steps(models: Sequence[Scored]) -> Table:
    steps = sorted({one.step for one in models})
    rows = [["objective", "score", *(f"step {step:,}" for step in steps)]]
    for objective in _objectives(models):
        for score in ("factor_vae", "mig", "infomec_modularity"):
            cells = (_cell(_at(models, objective, step), score) for step in steps)
            rows.append([objective, score, *cells])
    return Table("Over the training", rows, "Mean ± standard deviation over the seeds.")


def _means(models: Sequence[Scored], step: int, title: str, scores: Sequence[str]) -> Table:
    present = [score for score in scores if any(score in one.scores for one in models)]
    rows = [["objective", "seeds", *present]]
    for objective in _objectives(models):
        these = _at(models, objective, step)
        if these:
            cells = (_cell(these, score) for score in present)
            rows.append([objective, str(len(these)), *cells])
    note = f"At step {step:,}: mean ± standard deviation over the seeds."
    return Table(title, rows, note)


def _paired(models: Sequence[Scored], step: int, baseline: str) -> Table:
    scores = [score for score in SHOWN if any(score in one.scores for one in models)]
    rows = [[f"against {baseline}", "seeds", *scores]]
    for objective in _objectives(models):
        if objective == baseline:
            continue
        found = [
            paired(models, objective=objective, baseline=baseline, step=step, score=score)
            for score in scores
        ]
        cells = ["" if np.isnan(mean) else f"{mean:+.3f} (p {_p(p)})" for mean, p, _ in found]
        rows.append([objective, str(found[0][2] if found else 0), *cells])
    note = (
        f"At step {step:,}: mean difference over the seeds that both have, and p of a two-sided "
        "paired t-test, which is not corrected for the number of comparisons."
    )
    return Table("Paired over seeds", rows, note)


def _ranks(models: Sequence[Scored], step: int) -> Table:
    names = dict.fromkeys(name for one in models for name in one.scores)
    measures = [name for name in names if name.startswith(("likeness/", "faithfulness/"))]
    measures += [name for name in ("kl", "reconstruction") if name in names]
    sets = (models, [one for one in models if one.step == step])
    rows = [["measure without labels", *RANKED_BY, "models"]]
    for measure in measures:
        found = [
            [rank_correlation(these, measure=measure, score=score) for these in sets]
            for score in RANKED_BY
        ]
        cells = [
            "" if np.isnan(every) else f"{every:+.2f} / {_rho(last)} (p {_p(p)})"
            for (every, *_), (last, p, _) in found
        ]
        rows.append([measure, *cells, " / ".join(str(count) for *_, count in found[0])])
    note = (
        f"Spearman's correlation, over the models of all steps / of step {step:,} alone, and p of "
        "the latter, which is not corrected for the number of tests, and too small if the seeds of "
        "an objective are alike. The models of one run are not independent: the former has no p."
    )
    return Table("Selection without labels", rows, note)


def _rho(rho: float) -> str:
    return "-" if np.isnan(rho) else f"{rho:+.2f}"


def _p(p: float) -> str:
    return "-" if np.isnan(p) else f"{p:.2g}"
