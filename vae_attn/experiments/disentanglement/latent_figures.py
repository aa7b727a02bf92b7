"""Figures of what single latents mean: traversals, still and animated; curves; runs compared."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from vae_attn.reporting import figures

_GAP, _MARGIN = 2, 14  # pixels between the images, and over them for their names


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
      names: one a latent, for the rows'.
      title: of the figure.
      note: small print under it.
    """
    rows = dict(zip(names, decoded, strict=True))
    return figures.grid(rows, [f"{value:+.1f}" for value in values], title=title, note=note)


def animation(
    decoded: Float[np.ndarray, "images latents values height width channels"], names: list[str]
) -> list[Image.Image]:
    """The same as moving pictures: a row an image, a column a latent, there and back again.

    Args:
      decoded: grey images in [0, 1].
      names: one a latent, written over its column.

    Returns:
      The frames.
    """
    num_images, num_latents, num_values, height, width, _ = decoded.shape
    size = (num_latents * (width + _GAP) + _GAP, num_images * (height + _GAP) + _GAP + _MARGIN)
    frames = []
    for value in [*range(num_values), *range(num_values - 2, 0, -1)]:
        frame = Image.new("L", size, 255)
        draw = ImageDraw.Draw(frame)
        for column, name in enumerate(names):
            left = _GAP + column * (width + _GAP)
            draw.text((left + width / 2, 1), name, fill=0, anchor="ma")
            for row in range(num_images):
                pixels = np.round(255 * decoded[row, column, value, ..., 0]).astype(np.uint8)
                frame.paste(Image.fromarray(pixels), (left, _MARGIN + row * (height + _GAP)))
        frames.append(frame)
    return frames


def reconstruction_against_score(
    runs: dict[str, list[tuple[float, float]]], *, score: str, highlighted: str
) -> Figure:
    """The price of disentanglement: one point a seed (Kim & Mnih 2018, figures 4 and 6).

    Args:
      runs: reconstruction loss in nats and score of each seed, by the run's name.
      score: its name, for the axis.
      highlighted: name of the run that this is the report of.
    """
    figure = Figure(figsize=(5, 3.4), dpi=120)
    axis = figure.subplots()
    for name, pairs in runs.items():
        colour = "#b5367a" if name == highlighted else "0.5"
        axis.plot(*np.transpose(pairs), "o", color=colour)
        rightmost = max(pairs)
        axis.annotate(name, rightmost, (4, 4), textcoords="offset points", fontsize=7)
    axis.set_xlabel("reconstruction loss, nats an image (left is better)", fontsize=8)
    axis.set_ylabel(f"{score} (up is better)", fontsize=8)
    axis.set_ylim(0, 1.05)
    axis.margins(x=0.2)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    return figure
