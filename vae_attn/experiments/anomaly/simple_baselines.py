"""Maps without a model, beside which all others have to be read.

Where objects hardly move, the difference to the median normal image finds most of what is
abnormal; and where defects are always at the same place, a map of that place alone does.
"""

import dataclasses

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Float32, UInt8

from vae_attn.experiments.map_functions import IMAGE
from vae_attn.experiments.maps import RawMaps

MEDIAN = "median_difference"  # the mean over channels of |x - median normal image|
MEDIAN_SMOOTH = "median_difference_smooth"  # the same, smoothed
PLACE = "place"  # the mean of normal images' difference maps: the same map for every image
SIMPLE = (MEDIAN, MEDIAN_SMOOTH, PLACE)
NAMES = tuple(f"{style}/{IMAGE}" for style in SIMPLE)  # as `Variant.name`

_MOST_IMAGES = 400  # whose median is taken
_SIGMA = 1 / 56  # of an image's longer side: 2 pixels of 112
_STRIP_BYTES = 2**25


@dataclasses.dataclass(frozen=True, eq=False)
class SimpleBaselines:
    """Difference maps to a normal image.

    Attributes:
      median: the median normal image, 0 to 255.
      place: the mean of normal images' maps of the plain difference.
    """

    median: Float32[np.ndarray, "height width channels"]
    place: Float32[np.ndarray, "height width"]

    @classmethod
    def of(
        cls,
        train: UInt8[np.ndarray, "n height width channels"],
        validation: UInt8[np.ndarray, "m height width channels"],
    ) -> "SimpleBaselines":
        """The baselines of training images and of others, held out, which show the place."""
        thinned = train[:: -(-len(train) // _MOST_IMAGES)]
        rows = max(1, _STRIP_BYTES // max(1, thinned[:, :1].nbytes))
        starts = range(0, train.shape[1], rows)
        strips = [np.median(thinned[:, start : start + rows], axis=0) for start in starts]
        median = np.concatenate(strips).astype(np.float32)
        place = np.mean([_difference(image[None], median)[0] for image in validation], axis=0)
        return cls(median, place.astype(np.float32))

    def maps(self, images: UInt8[np.ndarray, "n height width channels"]) -> RawMaps:
        """The three maps of each image, by style and `IMAGE`."""
        plain = _difference(images, self.median)
        sigma = _SIGMA * max(images.shape[1:3])
        smooth = scipy.ndimage.gaussian_filter(plain, (0, sigma, sigma))
        return {
            (MEDIAN, IMAGE): plain,
            (MEDIAN_SMOOTH, IMAGE): smooth,
            (PLACE, IMAGE): np.broadcast_to(self.place, plain.shape),
        }


def _difference(images: np.ndarray, median: np.ndarray) -> Float[np.ndarray, "n height width"]:
    return np.abs(images - median).mean(axis=3) / np.float32(255)
