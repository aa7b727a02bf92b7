"""The VAE of configs/mvtec_ad.py on one's own images, in MVTec-AD's layout.

    python -m vae_attn.main --config=configs/folder.py --config.data.dir=my_images

`data.dir` holds train/good/*, test/good/*, test/<defect>/* and, where the defects' places are
known, ground_truth/<defect>/<name of the image>_mask.png: any format that Pillow reads, grey or
colour, of any size. Without ground_truth the scores say which images are abnormal, not where.

Mirrors, which may turn a good object into a bad one, are off; allow them with
`--config.data.mirror_horizontal=True` and `--config.data.mirror_vertical=True`. `folder.py:light`
takes the small model of configs/mvtec_ad_light.py, for machines without an accelerator, and
`folder.py:quick` a still smaller one of a minute or two, on images of 64 pixels: a first look that
shows whether everything is in its place, not how good it gets. Time of the others: not measured.
"""

import ml_collections

from vae_attn.config import default_config, known_variant


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; `variant` is empty, `light`, or `quick`, which is `light,quick` too."""
    chosen = known_variant(variant, ["light", "quick", "light,quick"]) if variant else ""
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 256
    config.data.validation_fraction = 0.2
    config.data.images_per_epoch = 10_000
    config.data.rotation = 30.0
    config.model.name = "mvtec_ad"
    config.model.latents = 32
    config.train.batch_size = 8
    config.train.epochs = 300
    config.train.learning_rate = 1e-4
    config.train.checkpoint_every = 5000
    config.attention.layer = "layer2"
    config.attention.latent_batch_size = 8
    # All layers, so that none is picked by a look at a test set.
    config.attention.layers = config.evaluate.layers = ("layer1", "layer2", "layer3", "layer4")
    config.attention.calibration = "upper"
    config.evaluate.batch_size = 8
    if chosen:
        _make_light(config)
    if "quick" in chosen:
        _make_quick(config)
    return config


def _make_light(config):
    """The model, training and maps of configs/mvtec_ad_light.py, which says why."""
    config.data.image_size = 128
    config.model.name = "convnet"
    config.model.latents = 64
    config.train.batch_size = 16
    config.train.steps = 9000
    config.train.learning_rate = 3e-4
    config.train.beta = 0.05
    config.train.checkpoint_every = 500
    config.attention.layer = "conv2"
    config.attention.latent_batch_size = 0
    config.attention.layers = config.evaluate.layers = ("conv1", "conv2", "conv3", "conv4")
    config.evaluate.batch_size = 16


def _make_quick(config):
    """Everything once, small: a short training, one layer, few images scored and shown."""
    config.data.image_size = 64
    config.model.latents = 16
    config.train.steps = 150
    config.train.learning_rate = 1e-3
    config.train.checkpoint_every = 75
    config.attention.layers = config.evaluate.layers = ("conv2",)
    config.attention.projection_steps = 3
    config.evaluate.styles = ("paper", "contrast")
    config.evaluate.max_images = 60
    config.report.max_images = 30
    config.evaluate.faithful_images = 16
    config.report.tensorboard_images = 0
