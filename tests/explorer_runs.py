"""A run to explore without a model: its maps are functions of the images that numpy computes."""

import functools
import json
import pathlib
import types
import zlib
from base64 import b64decode
from io import BytesIO

import numpy as np
from PIL import Image

from vae_attn import faithfulness
from vae_attn.config import default_config
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.experiments.anomaly import explorer, report
from vae_attn.experiments.anomaly.calibration import (
    Calibration,
    Variant,
    measure,
    normal_thresholds,
)
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.maps import Deviations, ExactMaps, Mapper, replaced_counts
from vae_attn.reporting import page, svg_plots

HEIGHT, WIDTH, LATENTS = 40, 48, 5
# Of a run whose maps were measured at one layer.
SCORES = {
    f"faithfulness/{kind}/{measure}": value
    for kind, values in {"contrast/conv1": (0.37, 0.06), "deeplift/image": (0.99, 0.98)}.items()
    for measure, value in zip(("correlation", "which_latent"), values, strict=True)
} | {
    f"faithfulness/{kind}/which_latent_chance": 0.0625
    for kind in ("contrast/conv1", "deeplift/image")
}
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u2028<!--"


class Maps(Explainer):
    """Maps are bright where an image is; deeper layers see less of it."""

    def __init__(self, validation):
        keep = functools.partial(object.__setattr__, self)  # it is frozen
        variant = Variant("contrast", ("conv1", "conv2"), "ratio")
        keep("model", types.SimpleNamespace(latents=LATENTS))
        keep("asked", [])  # numbers of images that were asked for at once
        raw = self.maps(validation, styles=("contrast",), layers=("conv1", "conv2"))
        pixels, images = normal_thresholds(variant, raw)
        calibration = Calibration(
            parameters="none",
            variant=variant,
            projection_steps=0,
            normal_mean=np.zeros(LATENTS, np.float32),
            normal_variance=np.ones(LATENTS, np.float32),
            statistics=measure(raw),
            pixels=pixels,
            images=images,
            active_latents=LATENTS,
        )
        keep("calibration", calibration)

    def __call__(self, images, counterparts=None):
        raw = self.maps(images, styles=("contrast",), layers=("conv1", "conv2"))
        maps = self.variant.maps(raw, self.calibration.statistics)
        return maps, maps.max(axis=(1, 2))

    def maps(self, images, *, styles, layers, counterparts=None):
        self.asked.append(len(images))
        pixels = images.mean(axis=3, dtype=np.float32) / np.float32(255)
        powers = {"conv1": 1.5, "conv2": 3.0}
        factors = {"paper": 0.3, "contrast": 7.0}
        return {
            (s, layer): np.float32(factors[s]) * pixels ** np.float32(powers[layer])
            for s in styles
            for layer in layers
        }

    def reconstruct(self, images):
        return np.full(images.shape, 0.25, np.float32)

    def counterparts(self, images):
        return np.full(images.shape, 0.5, np.float32)

    def encode(self, images):
        mean = images.reshape(len(images), -1)[:, : LATENTS * 7 : 7].astype(np.float32) / 255
        return 3 * mean - 1, np.zeros((len(images), LATENTS), np.float32)

    def chunks(self, images, *, styles, layers):
        for start in range(0, len(images), 4):
            chunk = slice(start, min(start + 4, len(images)))
            counterparts = self.counterparts(images[chunk])
            raw = self.maps(images[chunk], styles=styles, layers=layers, counterparts=counterparts)
            yield raw | self.baseline_maps(images[chunk], counterparts), counterparts, chunk

    all_maps = Mapper.all_maps

    def deviating_latents(self, images, *, count):
        deviation = self.encode(images)[0] / np.float32(np.sqrt(2))
        order = np.argsort(-np.abs(deviation), axis=1, kind="stable")[:, :count]
        return Deviations(order, np.take_along_axis(deviation, order, axis=1))

    def exact_maps(self, images, counterparts, latents):
        """Latent i weighs the difference by i + 1, and turns every other one round."""
        weights = (latents + 1) * (-1.0) ** latents / 1000
        maps = np.float32(weights[..., None, None] * difference(images, counterparts)[:, None])
        z = np.take_along_axis(self.encode(images)[0], latents, axis=1)
        return ExactMaps(latents, maps, z, z - maps.sum(axis=(2, 3)))

    def replacing(self, images, counterparts, exact, *, shares):
        order = np.asarray(faithfulness.deletion_order(exact.maps))
        counts = replaced_counts(shares, images.shape[1:3])
        gone = [np.where(order < count, exact.maps, 0).sum(axis=(2, 3)) for count in counts]
        return order, exact.z[..., None] - np.stack(gone, axis=2)

    def deviation_maps(self, images, counterparts):
        return np.float32(difference(images, counterparts) ** 3)

    def image_scores(self, images):
        return {"standardised_deviation": (self.encode(images)[0] ** 2).sum(axis=1) / 2}


def difference(images, counterparts):
    return images.mean(axis=3) / 255 - counterparts.mean(axis=3)


def data_of(num_test=14, names=None, *, seed=0):
    """Half of the test images have a bright block where their mask is."""
    rng = np.random.default_rng(seed)

    def noise(n):
        return rng.integers(5, 90, (n, HEIGHT, WIDTH, 3), dtype=np.uint8)

    images, masks = noise(num_test), np.zeros((num_test, HEIGHT, WIDTH), bool)
    labels = np.arange(num_test) % 4 * (np.arange(num_test) % 2)  # 0, 1, 0, 3
    for n in np.flatnonzero(labels):
        top, left = rng.integers(0, 20, 2)
        masks[n, top : top + 12, left : left + 9] = True
        images[n, top + 2 : top + 14, left : left + 9] = rng.integers(60, 255)
    test = LabelledImages(
        images=images,
        labels=labels,
        class_names=("good", "cut", "unused", "bent & torn"),
        names=tuple(names or (f"image/{n:03d}" for n in range(num_test))),
        masks=masks,
        has_mask=np.ones(num_test, bool),
    )
    return AnomalyData("blocks", noise(6), noise(24), test)


def config_of(**report_options):
    config = default_config()
    config.evaluate.batch_size = 4
    config.attention.layers = ("conv1", "conv2")
    config.attention.calibration = "ratio"
    config.report.update(report_options)
    return config


def write(folder, data, config=None, drawn=None, tables=(), **shell):
    """Writes a page with an explorer; returns its path, what it knows, and the explainer."""
    config, explainer = config or config_of(), Maps(data.validation)
    made = explorer.Explorer(config, explainer, data, scale=12.0, scores=SCORES)
    known = made.write(folder / "report")
    curves = report._plots(config, None, explainer, known["images"])
    path = page.write(
        config, folder, title=data.name, summary="A run.", drawn=drawn or {}, tables=tables,
        explorer=known | {"note": ""}, plots=curves, **shell,
    )  # fmt: skip
    assert all(isinstance(plot, svg_plots.Plot) for plot in curves)
    return path, known, explainer


def read(folder: pathlib.Path, known: dict, identifier: str) -> dict:
    """An image's script, decoded by other means than the page's."""
    text = (folder / f"{identifier}.js").read_text(encoding="utf-8")
    start = f'explorer.receive("{identifier}",'
    assert text.startswith(start)
    record = json.loads(text.removeprefix(start).rstrip().removesuffix(");"))
    raw = np.frombuffer(zlib.decompress(b64decode(record["planes"])), np.uint8)
    latents, first = record["latents"], len(known["maps"]) + record["mask"]
    count = first + len(latents["order"]) - 1
    large = raw[: count * HEIGHT * WIDTH].reshape(count, HEIGHT, WIDTH)
    large = np.cumsum(large, axis=2, dtype=np.uint8)
    tiles = raw[large.size :].reshape(len(latents["order"]), latents["height"], latents["width"])
    record["maps"] = large[: len(known["maps"])]
    record["mask"] = large[first - 1].astype(bool) if record["mask"] else None
    record["levels"] = large[first:]
    record["tiles"] = np.cumsum(tiles, axis=2, dtype=np.uint8)
    return record


def pixels_of(data_url: str) -> np.ndarray:
    """The picture in a data URL."""
    return np.asarray(Image.open(BytesIO(b64decode(data_url.partition(",")[2]))))


def iou_of(levels: np.ndarray, step: float, threshold: float, mask: np.ndarray) -> float:
    """Intersection over union of what 8-bit levels exceed."""
    found = levels.astype(int) >= np.ceil(threshold / step - 1e-6)
    return (found & mask).sum() / (found | mask).sum()
