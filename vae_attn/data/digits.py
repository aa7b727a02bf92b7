"""Scikit-learn's handwritten digits as a one-class data set: real digits, no download.

The 1,797 digits are the test half of the UCI "Optical recognition of handwritten digits" set:
bitmaps of 32x32 counted in 4x4 blocks, hence 8x8 images of 0 to 16.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.defects import SCORES_NOTE
from vae_attn.errors import UserError

TEST_FRACTION = 0.2
_SIDE = 28
_DIGIT_SIDE = 20  # MNIST's digits are 20x20 in a frame of 28x28
_BORDER = 2  # empty pixels around the 8x8 images before resizing, so that strokes fade out


def load(digit: int, *, validation_fraction: float = 0.2, seed: int = 0) -> AnomalyData:
    """Loads the images of one digit to learn from, and those of all ten to explain.

    A seeded shuffle gives `TEST_FRACTION` of the digit's about 180 images to the test set and
    `validation_fraction` to validation; the other nine digits go to the test set whole.

    Args:
      digit: the normal class, 0 to 9.
      validation_fraction: share of the digit's images that is held out for validation.
      seed: of the shuffle.

    Returns:
      Images of 28x28x1. Test images keep scikit-learn's order, which mixes the digits.

    Raises:
      UserError: `digit` is not 0 to 9, or `validation_fraction` leaves a part empty.
    """
    check_digit(digit)
    from sklearn.datasets import load_digits  # takes half a second, which other data sets save

    source = load_digits()
    images, digits = _resize(source.images), source.target
    own = np.random.default_rng(seed).permutation(np.flatnonzero(digits == digit))
    num_test = round(TEST_FRACTION * len(own))
    num_validation = check_split(validation_fraction, len(own) - num_test, total=len(own))
    held_out, kept = own[:num_test], np.sort(own[num_test + num_validation :])
    validation = np.sort(own[num_test : num_test + num_validation])
    test = np.sort(np.concatenate([held_out, np.flatnonzero(digits != digit)]))
    labels, class_names = one_class_labels(digits[test], digit)
    return AnomalyData(
        name=f"scikit-learn digits, digit {digit}",
        draws_defects=True,
        scores_note=SCORES_NOTE,
        train=images[kept],
        validation=images[validation],
        test=LabelledImages(
            images=images[test],
            labels=labels,
            class_names=class_names,
            names=tuple(f"digits/{index:04d}" for index in test),
            masks=None,
            has_mask=np.zeros(len(test), bool),
        ),
    )


def one_class_labels(
    digits: Int[np.ndarray, "n"], normal: int
) -> tuple[Int[np.ndarray, "n"], tuple[str, ...]]:
    """Renumbers digits so that the normal one is class 0 and the others follow in order.

    Returns:
      The labels, and the ten class names: "3 (normal)", "0", "1", "2", "4", ...
    """
    others = [digit for digit in range(10) if digit != normal]
    label_of_digit = np.empty(10, np.int64)
    label_of_digit[[normal, *others]] = np.arange(10)
    return label_of_digit[digits], (f"{normal} (normal)", *map(str, others))


def check_digit(digit: int) -> None:
    """Raises a UserError unless `digit` is 0 to 9."""
    if not 0 <= digit <= 9:
        raise UserError(f"the normal digit is {digit}, and must be one of 0 to 9")


def check_split(validation_fraction: float, available: int, *, total: int) -> int:
    """Number of validation images, `validation_fraction` of `total`.

    Raises:
      UserError: that leaves nothing for validation, or nothing of the `available` for training.
    """
    count = round(validation_fraction * total) if 0 < validation_fraction < 1 else 0
    if not 0 < count < available:
        raise UserError(
            f"validation_fraction={validation_fraction} leaves no images for validation or for "
            f"training; choose it so that of {total} images at least one, and fewer than "
            f"{available}, are for validation"
        )
    return count


def _resize(images: Float[np.ndarray, "n 8 8"]) -> UInt8[np.ndarray, "n 28 28 1"]:
    """Scales 8x8 images of 0 to 16 bicubically to 20x20, centred in 28x28, 0 to 255."""
    padded = np.pad(images, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER)))
    side = padded.shape[1] * _DIGIT_SIDE // 8
    crop = (side - _SIDE) // 2
    resized = np.stack(
        [
            np.asarray(
                Image.fromarray(image.astype(np.float32)).resize(
                    (side, side), Image.Resampling.BICUBIC
                )
            )
            for image in padded
        ]
    )
    inner = resized[:, crop : crop + _SIDE, crop : crop + _SIDE, None]
    return np.clip(np.rint(inner * (255 / 16)), 0, 255).astype(np.uint8)
