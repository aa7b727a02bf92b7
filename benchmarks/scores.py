"""Scores of a whole test set: time, and the peak of memory."""

import functools
from collections.abc import Callable

import jax
import numpy as np
import scipy.ndimage
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.case import OURS, Case, Side
from benchmarks.ours import encoder, setting
from benchmarks.torch_models import TorchVAE
from benchmarks.training import channels_first, unit
from vae_attn.data.factor_grid import FactorGrid
from vae_attn.experiments.anomaly.localization import (
    LocalizationState,
    image_auroc,
    image_average_precision,
)
from vae_attn.experiments.disentanglement.codes import BATCH_SIZE, sample_with_fixed_factor
from vae_attn.experiments.disentanglement.factor_scores import factor_vae_score

_MAPS = 1725  # as MVTec-AD has test images
_SIDE = 256
_CHUNK = 25
_IMAGES, _RESAMPLES = 83, 1000  # as the bottle has test images
_VOTES = 200
_LATENTS = 10
_SHAPES = FactorGrid(
    ("shape", "scale", "orientation", "x", "y"),
    tuple(tuple(range(size)) for size in (3, 6, 40, 32, 32)),
)


def cases() -> list[Case]:
    """All of this file."""
    return [
        Case(
            name="score_pixels",
            what=f"pixel AUROC and AUPRO of {_MAPS} maps of {_SIDE} x {_SIDE}",
            items=_MAPS,
            unit="maps",
            sides={OURS: _our_pixels, "scikit-learn, all pixels at once": _their_pixels},
            rounds=1,
            warm_up=False,
        ),
        Case(
            name="score_images",
            what=f"AUROC and average precision of {_IMAGES} images, as a bootstrap's 1,000 samples",
            items=_RESAMPLES,
            unit="samples",
            sides={OURS: _our_images, "scikit-learn": _their_images},
            rounds=3,
            tolerance=1e-9,
        ),
        Case(
            name="score_factor_vae",
            what=f"FactorVAE score, {_VOTES} votes of 100 images",
            items=_VOTES,
            unit="votes",
            sides={OURS: _our_votes, "torch, a batch a vote": _their_votes},
            rounds=3,
            tolerance=1e-6,
        ),
        Case(
            name="score_batches",
            what=f"FactorVAE score, {_VOTES} votes of 100 images, by images encoded at once",
            items=_VOTES,
            unit="votes",
            sides={OURS: _our_votes, "ours, 1024": functools.partial(_our_votes, 1024)},
            rounds=3,
            tolerance=1e-6,
        ),
    ]


def _chunks():
    """Maps with one square defect in each, in chunks as an evaluation makes them."""
    rng = np.random.default_rng(0)
    for start in range(0, _MAPS, _CHUNK):
        number = min(_CHUNK, _MAPS - start)
        masks = np.zeros((number, _SIDE, _SIDE), bool)
        for mask in masks:
            y, x = rng.integers(0, _SIDE - 40, size=2)
            mask[y : y + 30, x : x + 40] = True
        noise = rng.random(masks.shape, np.float32)
        yield noise + 0.5 * masks.astype(np.float32), masks


def _our_pixels() -> Side:
    found = {}

    def score() -> None:
        state = LocalizationState.empty()
        for maps, masks in _chunks():
            state = state.add(scores=maps, masks=masks)
        found.update(state.compute())

    score()
    return Side(score, {name: found[name] for name in ("pixel_auroc", "aupro")})


def _their_pixels() -> Side:
    found = {}

    def score() -> None:
        maps, masks = (np.concatenate(parts) for parts in zip(*_chunks(), strict=True))
        found["pixel_auroc"] = roc_auc_score(masks.ravel(), maps.ravel())
        found["aupro"] = _aupro(maps, masks)

    score()
    return Side(score, dict(found))


def _aupro(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
    """The definition, on one sorted array of all pixels."""
    weights = np.zeros(masks.shape, np.float32)
    regions = 0
    for weight, mask in zip(weights, masks, strict=True):
        labels, number = scipy.ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())
        weight[mask] = 1 / sizes[labels[mask]]
        regions += number
    order = np.argsort(-maps.ravel(), kind="stable")
    rate = np.cumsum(~masks.ravel()[order]) / (~masks).sum()
    overlap = np.cumsum(weights.ravel()[order], dtype=np.float64) / regions
    kept = rate <= limit
    rate, overlap = np.append(rate[kept], limit), np.append(overlap[kept], overlap[kept][-1])
    return float(np.trapezoid(overlap, rate) / limit)


def _resampled(*metrics: Callable[[np.ndarray, np.ndarray], float]) -> Side:
    """Sums of metrics of scores and labels over samples with replacement."""
    rng = np.random.default_rng(0)
    labels = rng.random(_IMAGES) < 0.7
    scores = rng.normal(size=_IMAGES) + labels

    def score() -> list[float]:
        sums = np.zeros(len(metrics))
        for _ in range(_RESAMPLES):
            drawn = rng.integers(_IMAGES, size=_IMAGES)
            sums += [metric(scores[drawn], labels[drawn]) for metric in metrics]
        return list(sums)

    return Side(score, {str(n): metric(scores, labels) for n, metric in enumerate(metrics)})


def _our_images() -> Side:
    return _resampled(
        lambda scores, labels: image_auroc(scores=scores, labels=labels),
        lambda scores, labels: image_average_precision(scores=scores, labels=labels),
    )


def _their_images() -> Side:
    return _resampled(
        lambda scores, labels: roc_auc_score(labels, scores),
        lambda scores, labels: average_precision_score(labels, scores),
    )


def _our_votes(batch_size: int = BATCH_SIZE) -> Side:
    model, variables, images = setting("dsprites", size=64, latents=_LATENTS)
    encode = encoder(model)

    def score() -> float:
        return factor_vae_score(
            codes_of=lambda indices: encode(variables, images[indices % len(images)])[0],
            grid=_SHAPES,
            rng=np.random.default_rng(0),
            num_votes=_VOTES,
            batch_size=batch_size,
        )

    return Side(score, {"score": score()})


def _their_votes() -> Side:
    """As public code has it: a vote encodes a batch of its own."""
    model, variables, images = setting("dsprites", size=64, latents=_LATENTS)
    vae, images = TorchVAE(model, jax.device_get(variables)).eval(), channels_first(images)

    @torch.no_grad()
    def codes(indices: np.ndarray) -> np.ndarray:
        return vae.encode(unit(images[indices % len(images)]))[0].numpy()

    def score() -> float:
        rng = np.random.default_rng(0)
        scale = codes(rng.integers(_SHAPES.num_images, size=10_000)).var(axis=0, ddof=1)
        groups, factors = sample_with_fixed_factor(_SHAPES, rng, num_groups=_VOTES, group_size=100)
        votes = np.zeros((_LATENTS, len(_SHAPES.varying)))
        for group, factor in zip(groups, factors, strict=True):
            votes[(codes(group).var(axis=0, ddof=1) / scale).argmin(), factor] += 1
        return votes.max(axis=1).sum() / _VOTES

    return Side(score, {"score": score()})
