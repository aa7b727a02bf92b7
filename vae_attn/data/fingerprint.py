"""Tells one data set from another by what its images hold."""

import hashlib

import numpy as np

from vae_attn.data.dataset import AnomalyData
from vae_attn.data.factor_grid import FactorData

_PIECE = 2**24  # bytes hashed at once: mapped images need not fit into memory


def fingerprint(data: AnomalyData | FactorData) -> str:
    """What a run has learned from, to be kept with it and compared.

    It depends on the pixels of the training and validation images as the model sees them, on
    their order and on the split; of a factor grid also on its factors. It does not depend on the
    names of files or folders, on dates, nor on the test images.

    Returns:
      64 hexadecimal digits (SHA-256).
    """
    digest = hashlib.sha256()
    if isinstance(data, FactorData):
        digest.update(repr((data.grid.names, data.grid.values)).encode())
    for name, images in (("train", data.train), ("validation", data.validation)):
        digest.update(repr((name, images.shape, images.dtype.str)).encode())
        rows = max(1, _PIECE // max(1, images[:1].nbytes))
        for start in range(0, len(images), rows):
            digest.update(np.ascontiguousarray(images[start : start + rows]).data)
    return digest.hexdigest()
