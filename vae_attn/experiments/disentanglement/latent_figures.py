"""Figures of what single latents mean: traversals, still and animated; runs compared."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image

from vae_attn.reporting import figures

_GAP = 2  # pixels between the images


def traversal(
    decoded: Float[np.ndarray, "latents values height width channels"],
    values: Float[np.ndarray, "values"],
    names: list[str],
    *,
    title: str,
    note: str,
) -> Figure:
    """What the decoder draws as one latent at a time goes from one end to the other.

    Args:
      decoded: images in [0, 1].
      values: what the latent was set to, for the columns' headings.
      names: one per latent, for the rows'.
      title: of the figure.
      note: small print under it.
    """
    rows = dict(zip(names, decoded, strict=True))
    return figures.grid(rows, [f"{value:+.1f}" for value in values], title=title, note=note)


def animation(
    decoded: Float[np.ndarray, "images latents values height width channels"], names: list[str]
) -> list[Image.Image]:
    """The same as moving pictures: a row per image, a column per latent, there and back again.

    Args:
      decoded: grey images in [0, 1].
      names: one per latent, written over its column.

    Returns:
      The frames.
    """
    levels = np.rint(255 * decoded).astype(np.uint8)
    num_values = decoded.shape[2]
    return [
        figures.tiled(levels[:, :, value], captions=names, gap=_GAP)
        for value in [*range(num_values), *range(num_values - 2, 0, -1)]
    ]


def reconstruction_against_score(
    runs: dict[str, list[tuple[float, float]]], *, score: str, highlighted: str
) -> Figure:
    """The price of disentanglement: one point per seed (Kim & Mnih 2018, figures 4 and 6).

    Args:
      runs: reconstruction loss in nats and score of each seed, by the run's name.
      score: its name, for the axis.
      highlighted: name of the run that this is the report of.
    """
    points = [
        figures.Line(
            *zip(*pairs, strict=True),
            stroke="o",
            colour=figures.HIGHLIGHT if name == highlighted else figures.BASELINE,
        )
        for name, pairs in runs.items()
    ]
    figure = figures.line_panels(
        {"": points},
        x_label="reconstruction loss, nats per image (left is better)",
        y_label=f"{score} (up is better)",
        size=(5.0, 3.4),
    )
    (axis,) = figure.axes
    for name, pairs in runs.items():
        axis.annotate(name, max(pairs), (4, 4), textcoords="offset points", fontsize=7)
    axis.set_ylim(0, 1.05)
    axis.margins(x=0.2)
    return figure
