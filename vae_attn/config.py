"""The keys of every experiment and their defaults.

Who uses a section validates it, in a `validate(config)` of its own that calls `require`;
`experiments.validation` calls them all.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import ml_collections

from vae_attn.errors import UserError, shown


def default_config() -> ml_collections.ConfigDict:
    """Every key with its default; a file of `configs/` changes what its experiment needs."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.num_seeds = 1  # trained together: seed, seed + 1, ...

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"
    config.data.source = "auto"  # dsprites: npz, tfds, rendered, or auto by what data.dir holds
    config.data.dir = "data"  # where the data set's official files are
    # Of decoded images and downloaded weights; "" is the user's cache, such as ~/.cache/vae_attn.
    config.data.cache_dir = ""
    config.data.image_size = 28
    config.data.channels = 0  # 1 grey, 3 colour, 0 what the model was made for
    config.data.digit = 3  # digits, mnist: the normal class
    # ucsd_ped1: 1, or 3 for a frame with its differences to the two before it as further channels;
    # data.channels is then 3 too.
    config.data.frames = 1
    config.data.category = ""  # mvtec_ad: one of its categories, or a group of them
    config.data.validation_fraction = 0.1  # of the normal training images
    config.data.split_seed = 0  # of the choice of validation images, the same for every seed
    config.data.rotation = 0.0  # augmentation: largest rotation, degrees in either direction
    # mvtec_ad: objects of a fixed pose (`mvtec_ad.FIXED_POSE`) hardly turn, and are not mirrored.
    config.data.keep_pose = False
    config.data.shift = 0.0  # augmentation: largest shift, pixels in either direction
    config.data.mirror_horizontal = False  # augmentation: left and right may be exchanged
    config.data.mirror_vertical = False  # augmentation: top and bottom may be exchanged
    config.data.images_per_epoch = 0  # augmented images; 0 is as many as there are
    # Whether every device keeps all training images: true, false (they are streamed, a batch at a
    # time), or auto, by whether they take at most so many MB; 0 is half of a device's memory.
    config.data.resident = "auto"
    config.data.resident_limit_mb = 0.0

    config.model = ml_collections.ConfigDict()
    config.model.name = "mnist"
    config.model.latents = 32
    # ImageNet weights of the ResNet18 of model.name=mvtec_ad: "", the path of a .safetensors file
    # or of its folder, or "download" for the public file (`models.pretrained`).
    config.model.pretrained = ""
    config.model.freeze_trunk = False  # keep the pretrained weights and statistics as they are

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 128  # over all devices
    config.train.epochs = 100
    config.train.steps = 0  # overrides epochs unless 0
    # The folder of another run, whose weights a new run starts from: parameters and batch
    # statistics of its best checkpoint, or its latest where evaluate.checkpoint is latest.
    config.train.init_from = ""
    config.train.learning_rate = 1e-3
    config.train.objective = "vae"  # beta_tc_vae or factor_vae, see `training.objectives`
    config.train.beta = 1.0  # weight of the KL term; of beta_tc_vae, of the total correlation
    # In which the model computes in training: float32, or bfloat16 for speed on accelerators (not
    # with a discriminator, whose density ratio needs full precision); parameters stay in float32.
    config.train.dtype = "float32"
    config.train.log_every = 50  # steps
    # Steps per call of the device; 0: one on the CPU, elsewhere all up to the next log line.
    config.train.steps_at_once = 0
    config.train.checkpoint_every = 1000  # steps; each one also measures the validation loss
    # Beside the two latest and the best by validation loss, checkpoints at multiples of so many
    # steps are kept, itself a multiple of checkpoint_every; 0 is none.
    config.train.keep_every = 0

    # Of train.objective=factor_vae: FactorVAE, and with ad_weight AD-FactorVAE.
    config.factor = ml_collections.ConfigDict()
    config.factor.gamma = 0.0  # weight of the total correlation
    config.factor.learning_rate = 1e-4  # of the discriminator
    # What the discriminator sees: codes, as published; standardized, whatever the latents' scale;
    # standardized_fixed, without a gradient through the scale (`training.discriminator_input`).
    config.factor.discriminator_input = "codes"
    config.factor.initialization = "normal"  # of the discriminator: normal (N(0, 0.02)) or glorot
    config.factor.ad_weight = 0.0  # lambda, weight of the attention disentanglement loss
    # paper (as published), exact_overlap, exact_cosine or jacobian_cosine:
    # `training.attention_loss.FORMS`.
    config.factor.ad_form = "paper"
    config.factor.ad_layer = "conv3"  # whose features the published form's maps weigh
    config.factor.ad_pairs = 1  # pairs of latents compared in a step

    config.attention = ml_collections.ConfigDict()
    config.attention.style = "contrast"  # of the pictures; learned ones need learned.steps
    config.attention.layer = "conv1"  # of the maps; dsprites: of those of single latents
    # Of the maps of images: the layers whose maps are averaged, () for `layer` alone, and how
    # normal validation images calibrate them: none, ratio, upper or z (`anomaly.calibration`);
    # none alone with style=authors_code, whose maps depend on their batch by a factor.
    config.attention.layers = ()
    config.attention.calibration = "none"
    # What contrast compares an image with: its reconstruction pulled closer to both the image
    # and the prior by this many steps (`counterparts.project`); 0 is the reconstruction itself.
    config.attention.projection_steps = 10
    config.attention.latent_batch_size = 0  # latents differentiated at once; 0 is all
    # Whether --mode=export also writes the signed maps of all latents, in a file of its own.
    config.attention.export_latents = False

    # Of the learned contrast (`experiments.learned`): a head that is trained after the model, on
    # anomalies drawn anew on its training images in each of so many steps; 0 trains none. Its
    # styles are learned and learned_contrast, the mean of its maps and those of contrast.
    config.learned = ml_collections.ConfigDict()
    config.learned.steps = 0
    config.learned.batch_size = 8
    config.learned.learning_rate = 1e-3

    config.evaluate = ml_collections.ConfigDict()
    # best (by validation loss, in which total correlation and L_AD have no part), latest, or all:
    # the best one, and beside it the main scores of every checkpoint that was kept.
    config.evaluate.checkpoint = "best"
    config.evaluate.styles = (
        *("paper", "authors_code", "normal_difference"),
        *("contrast", "contrast_signed", "feature_difference"),
    )
    config.evaluate.layers = ("conv1", "conv2")
    config.evaluate.batch_size = 64
    config.evaluate.points = 10_000  # dsprites: that scores learn from; half as many judge them
    # Images of each kind to score, drawn at random, and held-out ones to calibrate by; 0 is all.
    config.evaluate.max_images = 0
    # Test images over which it is measured whether the maps of single latents are true of them
    # (`experiments.faithful`); of images of more than 128 pixels a side fewer; 0 is none.
    config.evaluate.faithful_images = 64

    # Whether style, layers (of evaluate.layers) and calibration of the run's own maps are chosen by
    # anomalies drawn on held-out normal images (`anomaly.selection`), in the place of attention's.
    config.evaluate.select = False

    # ucsd_ped1: the sigma, in frames, over which scores of frames are smoothed within their clip
    # for further rows of scores; 0 is none.
    config.evaluate.smooth_frames = 0.0

    # own: places are scored at the size of the masks' files, to which maps are enlarged; model: at
    # the model's size, to which masks are shrunk, which loses small defects.
    config.evaluate.mask_size = "own"

    config.report = ml_collections.ConfigDict()
    # Images of each kind that the page's explorer holds (test images, and drawn defects where
    # there are), drawn at random, and by which colours are scaled; 0 is all.
    config.report.max_images = 300

    # Images whose maps (dsprites: traversals) TensorBoard shows at every checkpoint; 0 is none.
    config.report.tensorboard_images = 4

    config.parallel = ml_collections.ConfigDict()
    config.parallel.mode = "pmap"  # pmap or shard_map
    # Whether compiled programs are kept in data.cache_dir: on accelerators alone, with one process.
    config.parallel.compilation_cache = True
    return config


def require(
    config: ml_collections.ConfigDict, key: str, accepts: Callable[[Any], object], expected: str
) -> None:
    """Checks the value of a key.

    Args:
      config: see `default_config`.
      key: with dots, such as `train.steps`.
      accepts: whether a value is right.
      expected: what the value must be, such as "0 or more".

    Raises:
      UserError: naming key, value and what was expected.
    """
    value = config
    for part in key.split("."):
        value = value[part]
    if not accepts(value):
        raise UserError(f"--config.{key}={shown(repr(value))} must be {expected}.")


def require_each(
    config: ml_collections.ConfigDict,
    keys: Iterable[str],
    accepts: Callable[[Any], object],
    expected: str,
) -> None:
    """As `require`, of several keys."""
    for key in keys:
        require(config, key, accepts, expected)


def known_variant(variant: str, known: Iterable[str]) -> str:
    """The variant of a config file, such as `3` of `configs/mnist.py:3`.

    Raises:
      UserError: if it is none of those known.
    """
    known = list(known)
    if variant not in known:
        near = difflib.get_close_matches(variant[:100], known, n=1)
        hint = f" Did you mean :{near[0]}?" if near else ""
        raise UserError(
            f"the config's variant {shown(repr(variant))} is unknown: give one of "
            f":{', :'.join(known)}.{hint}"
        )
    return variant


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flattened: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flattened |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flattened
