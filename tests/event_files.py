"""Reads TensorBoard's files back as TensorBoard does."""

import io

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator


def scalars_of(folder):
    """Steps and values by tag."""
    events = _load(folder)
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def pictures_of(folder):
    """Steps and pixels by tag."""
    events = _load(folder)
    return {
        tag: [(event.step, _decode(event.encoded_image_string)) for event in events.Images(tag)]
        for tag in events.Tags()["images"]
    }


def _load(folder):
    everything = {event_accumulator.SCALARS: 0, event_accumulator.IMAGES: 0}
    return event_accumulator.EventAccumulator(str(folder), size_guidance=everything).Reload()


def _decode(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)
