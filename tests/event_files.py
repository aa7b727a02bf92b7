"""Reads TensorBoard's files back as TensorBoard does; without it, by their records."""

import io
import struct

import numpy as np
from PIL import Image
from tensorboardX.proto import event_pb2

try:
    from tensorboard.backend.event_processing import event_accumulator
except ImportError:
    event_accumulator = None


def scalars_of(folder):
    """Steps and values by tag."""
    if event_accumulator:
        events = _load(folder)
        return {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
    found = _by_tag(folder, "simple_value")
    return {tag: [(step, value.simple_value) for step, value in of] for tag, of in found.items()}


def pictures_of(folder):
    """Steps and pixels by tag."""
    if event_accumulator:
        events = _load(folder)
        found = {
            tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)]
            for tag in events.Tags()["images"]
        }
    else:
        found = {
            tag: [(step, value.image.encoded_image_string) for step, value in of]
            for tag, of in _by_tag(folder, "image").items()
        }
    return {tag: [(step, _decode(png)) for step, png in of] for tag, of in found.items()}


def _load(folder):
    everything = {event_accumulator.SCALARS: 0, event_accumulator.IMAGES: 0}
    return event_accumulator.EventAccumulator(str(folder), size_guidance=everything).Reload()


def _by_tag(folder, kind):
    found = {}
    for path in sorted(folder.iterdir()):
        for event in _events(path):
            if event.session_log.status == event_pb2.SessionLog.START:
                found = {
                    tag: [one for one in of if one[0] < event.step] for tag, of in found.items()
                }
            for value in event.summary.value:
                if value.HasField(kind):
                    found.setdefault(value.tag, []).append((event.step, value))
    return found


def _events(path):
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def _decode(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)
