"""What every data source returns: normal images to learn from, labelled images to explain."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, UInt8

from vae_attn.data.image_files import ALL_LEVELS, Levels


def to_unit(images: UInt8[Array | np.ndarray, "*shape"]) -> Float32[Array, "*shape"]:
    """Pixels from 0..255 to [0, 1]; cheap enough to sit inside a compiled step."""
    return jnp.asarray(images).astype(jnp.float32) / 255.0


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images with what is known of them.

    Attributes:
      images: grey (channels 1) or RGB (channels 3), 0 to 255.
      labels: index into `class_names`; 0 is the normal class.
      class_names: names of the labels, `class_names[0]` the normal one.
      names: one stable name per image, for tables and file names.
      masks: True on anomalous pixels; None where the data has no pixel truth at all.
      has_mask: which images have pixel truth (all False where `masks` is None). A normal
        image whose truth is "no pixel" has one.
      read_full_mask: one function per image that reads its mask at the size of the image's file,
        None for an image without one; None for all where `masks` has that size already.
    """

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, "n"]
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    masks: Bool[np.ndarray, "n height width"] | None
    has_mask: Bool[np.ndarray, "n"]
    read_full_mask: tuple[Callable[[], Bool[np.ndarray, "_ _"]] | None, ...] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def full_mask(self, index: int) -> Bool[np.ndarray, "height width"]:
        """The mask of one image, as large as the image's file and not as the model takes it.

        Nothing is kept, so that masks of any size can be gone through one by one.

        Args:
          index: of an image that has a mask.

        Raises:
          ValueError: the image has no mask.
          UserError: the mask's file can no longer be read.
        """
        if not self.has_mask[index]:
            raise ValueError(f"{self.names[index]} has no mask")
        if self.read_full_mask is not None:
            return self.read_full_mask[index]()
        return np.asarray(self.masks[index])

    def take(self, chosen: np.ndarray) -> "LabelledImages":
        """The chosen images, by index or by a mask."""
        indices = np.arange(len(self))[chosen]
        full = self.read_full_mask
        return LabelledImages(
            images=self.images[indices],
            labels=self.labels[indices],
            class_names=self.class_names,
            names=tuple(self.names[i] for i in indices),
            masks=None if self.masks is None else self.masks[indices],
            has_mask=self.has_mask[indices],
            read_full_mask=None if full is None else tuple(full[i] for i in indices),
        )

    @property
    def kinds(self) -> Int[np.ndarray, "kinds 2"]:
        """The kinds of images that are there: a label, and whether a mask is known."""
        return np.unique(self._kind_of_each, axis=0)

    @property
    def _kind_of_each(self) -> Int[np.ndarray, "n 2"]:
        return np.stack([self.labels, self.has_mask.astype(np.int64)], axis=1)

    def sample(self, max_images: int, seed: int) -> "LabelledImages":
        """At most `max_images` (0: all) of the images, drawn at random, in their order.

        Where there is room, at least one of each of the `kinds` is among them: one that is rare
        takes the place of the last drawn of the most frequent.
        """
        if not max_images or len(self) <= max_images:
            return self
        order = np.random.default_rng(seed).permutation(len(self))
        _, kind = np.unique(self._kind_of_each, axis=0, return_inverse=True)
        kind = kind.reshape(-1)[order]  # NumPy 2.0 alone gives it two axes
        chosen = np.arange(len(self)) < max_images
        for rare in np.setdiff1d(kind, kind[chosen]):
            counts = np.bincount(kind[chosen])
            if counts.max() == 1:
                break  # no room
            chosen[np.flatnonzero(chosen & (kind == counts.argmax()))[-1]] = False
            chosen[np.flatnonzero(kind == rare)[0]] = True
        return self.take(np.sort(order[chosen]))


@dataclasses.dataclass(frozen=True)
class AnomalyData:
    """A one-class data set: train and validation hold normal images only.

    Attributes:
      name: for titles and tables.
      train: normal images the model learns from.
      validation: held-out normal images: best checkpoint, calibration, thresholds.
      test: what is explained and scored; may be empty.
      draws_defects: whether `data.defects` may draw masked defects on normal test images, which
        takes bright strokes on black; for data that has no masks.
      scores_note: what else has to be known of scores on this data, to stand under them.
      missing: one sentence for each kind of score that this data cannot give, with the reason.
      caveat: what makes promises from the held-out images doubtful, in a sentence without its full
        stop.
      levels: of files with more than 8 bits per channel, the levels that became 0 and 255; what
        `images.read_image` has to be given for further images of the same kind.
    """

    name: str
    train: UInt8[np.ndarray, "n_train height width channels"]
    validation: UInt8[np.ndarray, "n_validation height width channels"]
    test: LabelledImages
    draws_defects: bool = False
    scores_note: str = ""
    missing: tuple[str, ...] = ()
    caveat: str = ""
    levels: Levels = ALL_LEVELS

    @property
    def needs_drawn_defects(self) -> bool:
        """Whether places can be scored on drawn defects alone, as no true mask is known."""
        return self.draws_defects and not self.test.has_mask.any()

    def held_out(self, images: UInt8[np.ndarray, "n height width channels"]) -> LabelledImages:
        """Some of the validation images as labelled ones."""
        return LabelledImages(
            images=images,
            labels=np.zeros(len(images), np.int64),
            class_names=self.test.class_names,
            names=tuple(f"validation/{n:03d}" for n in range(len(images))),
            masks=None,
            has_mask=np.zeros(len(images), bool),
        )

    # As `FactorData.pixels`, so that the training loop uses both kinds of data alike.
    @staticmethod
    def pixels(images: UInt8[Array | np.ndarray, "*shape"]) -> Float32[Array, "*shape"]:
        """See `to_unit`."""
        return to_unit(images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train.shape[1:]
