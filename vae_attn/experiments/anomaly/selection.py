"""Chooses style, layers and calibration of a run's maps without a look at the test set.

Anomalies are drawn on half of the held-out normal images, and the other half calibrates, so that
whatever is scored on the test set can be scored here. The shapes drawn are others than those that
the head of the learned contrast has seen (`drawn_anomalies.PATCHES`). The variant with the highest
average precision of pixels is taken, and written down with the run before the test set is opened.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from vae_attn import backend, whole_files
from vae_attn.data import drawn_anomalies
from vae_attn.data.dataset import AnomalyData, LabelledImages, to_unit
from vae_attn.errors import UserError
from vae_attn.experiments.anomaly import calibration
from vae_attn.experiments.anomaly.calibration import Variant

FILE = "selection.json"  # in the workdir, beside the checkpoints that it belongs to
SCORE = "average_precision"
DRAWN = "drawn_"  # before the name of a score: that on drawn anomalies
SCORES = (SCORE, "pixel_auroc", "image_auroc_max")

_FEWEST = 4  # held-out images
_DRAWINGS = 96  # at least; of more images than that some are left out


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was chosen, from what.

    Attributes:
      variant: of the maps.
      scores: of every variant on drawn anomalies, as `name/drawn_average_precision`.
      origin: what they were made from; JSON's types alone.
    """

    variant: Variant
    scores: dict[str, float]
    origin: dict[str, object]

    @property
    def keys(self) -> dict[str, object]:
        """The keys of a config's `attention` that it sets."""
        chosen = self.variant
        return {"style": chosen.style, "layers": chosen.layers, "calibration": chosen.calibration}

    def save(self, path: pathlib.Path) -> None:
        """Writes it, whole or not at all."""
        with whole_files.writing(path) as temporary:
            text = json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: pathlib.Path) -> "Selection | None":
        """The selection in a file; None where there is none that is whole."""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            style, layers = (
                str(kept["variant"]["style"]),
                tuple(map(str, kept["variant"]["layers"])),
            )
            variant = Variant(style, layers, str(kept["variant"]["calibration"]))
            scores = {str(name): float(value) for name, value in kept["scores"].items()}
            whole = variant.calibration in calibration.KINDS and layers
            return cls(variant, scores, dict(kept["origin"])) if whole else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    @classmethod
    def of(
        cls, variants: Iterable[Variant], scores: Mapping[str, float], origin: dict[str, object]
    ) -> "Selection":
        """The best of the variants, the first of equals.

        Args:
          variants: to choose from.
          scores: of `evaluation.evaluate` on `drawn_data`, of these and others.
          origin: see the class.
        """
        best = max(variants, key=lambda variant: scores.get(f"{variant.name}/{SCORE}", -1.0))
        kept = {}
        for key, value in scores.items():
            name, _, score = key.rpartition("/")
            if score in SCORES:
                kept[f"{name}/{DRAWN}{score}"] = value
        return cls(best, kept, origin)


def drawn_data(data: AnomalyData, seed: int) -> AnomalyData:
    """The data with a test set of its own held-out images, on which anomalies are drawn.

    Args:
      data: its held-out images are used, and its training images to fill anomalies with.
      seed: of what is drawn.

    Raises:
      UserError: if too few images are held out.
    """
    half = -(-len(data.validation) // 2)  # not every second: frames of a clip are much alike
    images = data.validation[half:]
    if len(data.validation) < _FEWEST:
        raise UserError(
            f"evaluate.select: {len(data.validation)} held-out images are too few to draw on some "
            f"and calibrate by others, which takes {_FEWEST}: give more normal images, a larger "
            "data.validation_fraction, or evaluate.select=False."
        )
    rng = np.random.default_rng(seed)
    images = images[:: -(-len(images) // _DRAWINGS)]
    repeats = -(-_DRAWINGS // len(images))
    bases = np.concatenate([images] * repeats)
    others = data.train[np.sort(rng.integers(len(data.train), size=len(bases)))]
    drawn, masks = (np.asarray(of) for of in _draw_jit(jax.random.key(seed), bases, others))
    shown = masks.any(axis=(1, 2))  # where the filling was what was there, there is no anomaly
    test = np.concatenate([images, drawn[shown]])
    normal = len(images)
    return dataclasses.replace(
        data,
        validation=data.validation[:half],
        test=LabelledImages(
            images=test,
            labels=np.repeat([0, 1], [normal, len(test) - normal]),
            class_names=("held out", "drawn"),
            names=tuple(f"drawn/{n:03d}" for n in range(len(test))),
            masks=np.concatenate([np.zeros((normal, *masks.shape[1:]), bool), masks[shown]]),
            has_mask=np.ones(len(test), bool),
        ),
    )


def _draw(
    key: Array, images: Array, others: Array
) -> tuple[UInt8[Array, "n height width channels"], Bool[Array, "n height width"]]:
    def one(key: Array, image: Array, other: Array) -> tuple[Array, Array]:
        return drawn_anomalies.draw(key, image, other, shapes=drawn_anomalies.PATCHES)

    keys = jax.random.split(key, len(images))
    drawn, masks = jax.vmap(one)(keys, to_unit(images), to_unit(others))
    return jnp.round(255 * drawn).astype(jnp.uint8), masks


_draw_jit = backend.jit(_draw)


def rank_correlations(scores: Mapping[str, float]) -> dict[str, tuple[float, int]]:
    """How well drawn anomalies rank the maps as real ones do: Spearman, and of how many maps.

    Args:
      scores: of the test set, with those on drawn anomalies (`Selection.scores`).

    Returns:
      By score, such as `average_precision`; nothing of a score that fewer than three maps have.
    """
    from scipy import stats  # takes a second, which training saves

    found = {}
    for score in SCORES:
        names = [key.rpartition("/")[0] for key in scores if key.endswith(f"/{DRAWN}{score}")]
        both = [name for name in names if f"{name}/{score}" in scores]
        if len(both) < 3:
            continue
        pairs = [(scores[f"{name}/{DRAWN}{score}"], scores[f"{name}/{score}"]) for name in both]
        drawn, real = np.array(pairs).T
        if np.ptp(drawn) > 0 and np.ptp(real) > 0:
            found[score] = float(stats.spearmanr(drawn, real).statistic), len(both)
    return found


def described(scores: Mapping[str, float]) -> str:
    """`rank_correlations` in a sentence; "" where there are none."""
    headings = {
        SCORE: "average precision",
        "pixel_auroc": "pixel AUROC",
        "image_auroc_max": "image AUROC",
    }
    found = rank_correlations(scores)
    if not found:
        return ""
    parts = [f"{rho:.2f} by {headings[score]} ({n} maps)" for score, (rho, n) in found.items()]
    return (
        "Style, layers and calibration of the run's own maps were chosen by the average precision "
        "on anomalies drawn on held-out normal images, before the test set was opened. Spearman "
        f"correlation of how drawn and real anomalies rank the maps: {', '.join(parts)}."
    )
