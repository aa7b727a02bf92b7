"""Normal images alone, as a data set to train on."""

import numpy as np

from vae_attn.data.dataset import AnomalyData, LabelledImages


def small_data(images):
    """The images as training set and as test set, the first five to validate."""
    test = LabelledImages(
        images=images,
        labels=np.zeros(len(images), np.int64),
        class_names=("normal",),
        names=tuple(map(str, range(len(images)))),
        masks=None,
        has_mask=np.zeros(len(images), bool),
    )
    return AnomalyData(name="small", train=images, validation=images[:5], test=test)
