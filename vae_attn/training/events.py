"""TensorBoard's event files, written with TensorBoard's own package where it is installed."""

import functools
import io
import logging
import os
import pathlib
import socket
import time
import types
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_LOG = logging.getLogger("vae_attn")
_RGB = 3  # the colour space in a picture's summary


class Events:
    """One event file. Each call writes immediately, in the training thread.

    TensorBoard's own writer leaves it to another thread, which a full disk ends; the training then
    waits for that thread for ever.
    """

    def __init__(self, folder: pathlib.Path, *, ending: str) -> None:
        """Begins a file, or none where TensorBoard is missing: a sentence in the log says so."""
        self._tensorboard = _tensorboard()
        if self._tensorboard is None:
            return
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}{ending}"
        self._path = folder / name
        self._path.touch()
        append(self._path, self._record(file_version="brain.Event:2"))

    @property
    def written(self) -> bool:
        """Whether there is a file."""
        return self._tensorboard is not None

    def start(self, first_step: int) -> None:
        """TensorBoard drops what an earlier file says of the steps from `first_step` on."""
        if self.written:
            log = self._tensorboard.SessionLog
            start = log(status=log.START)
            append(self._path, self._record(step=first_step, session_log=start))

    def write(
        self,
        step: int,
        metrics: Mapping[str, float],
        pictures: Mapping[str, UInt8[np.ndarray, "_height _width 3"]],
    ) -> None:
        """Writes a step's metrics and pictures, all or none."""
        if not self.written:
            return
        values = [{"tag": name, "simple_value": value} for name, value in metrics.items()]
        values += [{"tag": name, "image": _image(x)} for name, x in pictures.items()]
        append(self._path, self._record(step=step, summary={"value": values}))

    def _record(self, **event: object) -> bytes:
        """An event as a TFRecord: its length and itself, each followed by its checksum."""
        data = self._tensorboard.Event(wall_time=time.time(), **event).SerializeToString()
        self._tensorboard.RecordWriter(buffer := io.BytesIO()).write(data)
        return buffer.getvalue()


@functools.cache
def _tensorboard() -> types.SimpleNamespace | None:
    """What writes events; imported here, since it takes half a second, and not everyone has it."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        _LOG.info("TensorBoard events are not written: pip install 'vae_attn[tensorboard]'")
        return None
    return types.SimpleNamespace(Event=Event, SessionLog=SessionLog, RecordWriter=RecordWriter)


def _image(pixels: UInt8[np.ndarray, "height width 3"]) -> dict[str, object]:
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    height, width, _ = pixels.shape
    return {
        "height": height,
        "width": width,
        "colorspace": _RGB,
        "encoded_image_string": buffer.getvalue(),
    }


def append(path: pathlib.Path, content: bytes) -> None:
    """Appends all of it to a file, or nothing."""
    size = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError:
        os.truncate(path, size)
        raise
