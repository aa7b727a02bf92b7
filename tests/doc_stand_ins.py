"""What the docs' code blocks take for granted, in small: `data=NAME` behind a fence.

Each function gets an empty current folder and returns the names that the block uses.
"""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from vae_attn.experiments import run as experiment


def digits(count=8):
    """Handwritten digits, (count, 8, 8, 1) in [0, 1]."""
    return jnp.asarray(load_digits().images[:count, ..., None] / 16, jnp.float32)


def own_vae(made):
    """A cut encoder of plain functions, and reconstructions of a kind."""
    params = 0.1 * jax.random.normal(jax.random.key(0), (64 * 3, 4))

    def features(params, images):
        return jnp.concatenate([images, images**2, jnp.abs(images - 0.5)], axis=3)

    def head(params, a):
        mean = jax.nn.relu(a).reshape(len(a), -1) @ params
        return mean, jnp.zeros_like(mean)

    images = digits()
    return {
        "params": params,
        "features": features,
        "head": head,
        "encode": lambda images: head(params, features(params, images))[0],
        "images": images,
        "reconstructions": images.mean(axis=0, keepdims=True).repeat(len(images), axis=0),
    }


def run(made):
    """A small trained run of digits in place of the folder of photographs."""
    shutil.copytree(made(), "runs/folder_photos")
    return {}


def run_and_images(made):
    """The same, and images of the model's size."""
    return run(made) | {"images": np.zeros((3, 28, 28, 1), np.uint8)}


def photographs(made):
    """Two photographs in the layout of a data set."""
    for split in ("train", "test"):
        folder = pathlib.Path("photographs") / split / "good"
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((300, 260), np.uint8)).save(folder / "one.png")
    return {}


def export(made):
    """What --mode=export wrote of that run."""
    import vae_attn

    folder = made()
    if not (folder / "export").exists():
        from vae_attn.experiments import validation

        config = validation.load(folder)
        config.attention.export_latents = True
        experiment.run(config, folder, mode="export")
    assert vae_attn.load(folder).model.image_shape == (28, 28, 1)
    for file in (folder / "export").glob("*.stablehlo"):
        shutil.copy(file, pathlib.Path.cwd())
    return {}
