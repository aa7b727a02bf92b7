"""The keys every experiment has, their defaults and limits, and how a workdir keeps them."""

import json
import math
import pathlib

import jax
import ml_collections

from vae_attn import attention, whole_files
from vae_attn.data import dsprites, mvtec_ad
from vae_attn.errors import UserError, shown
from vae_attn.experiments.anomaly import calibration
from vae_attn.models import build as models
from vae_attn.training import distributed, feed, parallel

DTYPES = ("float32", "bfloat16")

# Keys that may differ between two calls on one workdir: they change no parameter of the model.
_FREE_KEYS = (
    "attention.",
    "evaluate.",
    "parallel.",
    "report.",
    "data.dir",
    "data.cache_dir",
    "data.resident",
    "train.log_every",
    "train.steps_at_once",
    "train.keep_every",
)


def default_config() -> ml_collections.ConfigDict:
    """Every key with its default; a file of `configs/` changes what its experiment needs."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.num_seeds = 1  # trained together: seed, seed + 1, ...

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"
    config.data.source = "auto"  # dsprites: npz, tfds, rendered, or auto by what data.dir holds
    config.data.dir = "data"  # where the data set's official files are
    config.data.cache_dir = ""  # of decoded images and downloaded weights; "" is ~/.cache/vae_attn
    config.data.image_size = 28
    config.data.channels = 0  # 1 grey, 3 colour, 0 what the model was made for
    config.data.digit = 3  # digits, mnist: the normal class
    config.data.category = ""  # mvtec_ad: one of its categories, or a group of them
    config.data.validation_fraction = 0.1  # of the normal training images
    config.data.split_seed = 0  # of the choice of validation images, the same for every seed
    config.data.rotation = 0.0  # augmentation: largest rotation, degrees both ways
    # Whether objects of a fixed pose (`mvtec_ad.FIXED_POSE`) are turned and mirrored no further.
    config.data.keep_pose = False
    config.data.shift = 0.0  # augmentation: largest shift, pixels each way
    config.data.mirror_horizontal = False  # augmentation: left and right may be exchanged
    config.data.mirror_vertical = False  # augmentation: top and bottom may be exchanged
    config.data.images_per_epoch = 0  # augmented images; 0 is as many as there are
    # Whether every device keeps all training images: true, false (they are streamed, a batch at a
    # time), or auto, by whether they take at most so many MB; 0 is half of a device's memory.
    config.data.resident = "auto"
    config.data.resident_limit_mb = 0.0

    config.model = ml_collections.ConfigDict()
    config.model.name = "mnist"  # or package.module:function, a model of one's own (`models.build`)
    config.model.latents = 32
    # ImageNet weights of the ResNet18 of model.name=mvtec_ad: "", the path of a .safetensors file
    # or of its folder, or "download" for the public file (`models.pretrained`).
    config.model.pretrained = ""
    config.model.freeze_trunk = False  # keep the pretrained weights and statistics as they are

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 128  # over all devices
    config.train.epochs = 100
    config.train.steps = 0  # overrides epochs unless 0
    config.train.learning_rate = 1e-3
    config.train.beta = 1.0  # weight of the KL term
    # In which the model computes in training: float32, or bfloat16 for speed on accelerators (not
    # with a discriminator, whose density ratio wants all digits); parameters stay in float32.
    config.train.dtype = "float32"
    config.train.log_every = 50  # steps
    # Made by one call of the accelerator; 0: one on the CPU, elsewhere 10 (`feed.steps_at_once`).
    config.train.steps_at_once = 0
    config.train.checkpoint_every = 1000  # steps; each one also measures the validation loss
    # Beside the two latest and the best by validation loss, checkpoints at multiples of so many
    # steps are kept, themselves a multiple of checkpoint_every; 0 is none.
    config.train.keep_every = 0

    # FactorVAE and AD-FactorVAE, for data.name=dsprites; without either weight there is no
    # discriminator, and train.beta alone makes a VAE or a beta-VAE.
    config.factor = ml_collections.ConfigDict()
    config.factor.gamma = 0.0  # weight of the total correlation
    config.factor.learning_rate = 1e-4  # of the discriminator
    config.factor.ad_weight = 0.0  # lambda, weight of the attention disentanglement loss
    config.factor.ad_layer = "conv3"  # whose features its maps weigh
    config.factor.ad_pairs = 1  # pairs of latents compared in a step

    config.attention = ml_collections.ConfigDict()
    config.attention.style = "contrast"  # of the pictures
    config.attention.layer = "conv1"  # of the maps of single latents
    # Of the maps of images: the layers whose maps are averaged, () for `layer` alone, and how
    # normal validation images calibrate them: none, ratio, upper or z (`evaluation.calibration`);
    # none alone with style=authors_code, whose maps depend on their batch by a factor.
    config.attention.layers = ()
    config.attention.calibration = "none"
    # What contrast compares an image with: its reconstruction pulled closer to both the image
    # and the prior by this many steps (`counterparts.project`); 0 is the reconstruction itself.
    config.attention.projection_steps = 10
    config.attention.latent_batch_size = 0  # latents differentiated at once; 0 is all

    config.evaluate = ml_collections.ConfigDict()
    # best (by validation loss, in which total correlation and L_AD have no part), latest, or all:
    # the best one, and beside it the main scores of every checkpoint that was kept.
    config.evaluate.checkpoint = "best"
    config.evaluate.styles = attention.STYLES
    config.evaluate.layers = ("conv1", "conv2")
    config.evaluate.batch_size = 64
    config.evaluate.points = 10_000  # dsprites: that scores learn from; half as many judge them
    config.evaluate.max_images = 0  # images of each kind to score, drawn at random; 0 is all

    config.report = ml_collections.ConfigDict()
    # Images of each kind that the page's explorer holds (test images, and drawn defects where
    # there are), drawn at random; 0 is all.
    config.report.max_images = 300

    # Images whose maps (dsprites: traversals) TensorBoard shows at every checkpoint; 0 is none.
    config.report.tensorboard_images = 4

    config.parallel = ml_collections.ConfigDict()
    config.parallel.mode = "pmap"  # pmap or shard_map
    return config


def digit_variant(variant: str) -> int:
    """The normal digit of a config string such as `configs/mnist.py:3`."""
    if variant not in list("0123456789"):
        raise UserError(
            f"the config's variant {shown(repr(variant))} is no digit: give one of :0 to :9."
        )
    return int(variant)


def set_category(config: ml_collections.ConfigDict, category: str) -> None:
    """Sets MVTec-AD's category, and the augmentation that it permits.

    That is the mirrors of `mvtec_ad.MIRRORS`; and where `data.keep_pose` is set, for categories of
    a fixed pose, none and next to no rotation.

    Args:
      config: changed in place.
      category: of MVTec-AD; or a group of them (`mvtec_ad.GROUPS`), whose runs come here again.

    Raises:
      UserError: for an unknown category; the message lists all.
    """
    if category not in (*mvtec_ad.CATEGORIES, *mvtec_ad.GROUPS):
        raise UserError(
            f"{shown(repr(category))} is no category of MVTec-AD: give one of "
            f"{', '.join(mvtec_ad.CATEGORIES)}, or {' or '.join(mvtec_ad.GROUPS)}."
        )
    config.data.category = category
    if category in mvtec_ad.MIRRORS:
        mirror = mvtec_ad.MIRRORS[category]
        config.data.mirror_horizontal = mirror.horizontal
        config.data.mirror_vertical = mirror.vertical
    if config.data.keep_pose and category in mvtec_ad.FIXED_POSE:
        config.data.rotation = mvtec_ad.FIXED_POSE_ROTATION
        config.data.mirror_horizontal = config.data.mirror_vertical = False


def set_light(config: ml_collections.ConfigDict) -> None:
    """A small convolutional VAE, for machines without an accelerator; not in the report."""
    config.data.image_size = 128
    config.model.name = "convnet"
    config.model.latents = 64
    config.train.batch_size = 16
    config.train.steps = 9000
    # At 1e-3 the latents died on the bottle within 500 steps; with beta 1 few of them survived.
    config.train.learning_rate = 3e-4
    config.train.beta = 0.05
    config.train.checkpoint_every = 500
    config.attention.layer = "conv2"
    # All layers, so that none is picked by a look at a test set.
    config.attention.layers = config.evaluate.layers = ("conv1", "conv2", "conv3", "conv4")
    config.attention.calibration = "upper"
    config.attention.latent_batch_size = 0
    config.evaluate.batch_size = 16


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what a type cannot: names, ranges, layers.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    positive = ("train.batch_size", "train.log_every", "train.checkpoint_every", "model.latents")
    for key in (*positive, "evaluate.batch_size", "train.learning_rate"):
        _require(config, key, lambda value: value > 0, "greater than 0")
    for key in (
        "train.epochs",
        "train.steps",
        "train.steps_at_once",
        "train.keep_every",
        "evaluate.max_images",
        "report.max_images",
        "report.tensorboard_images",
        "data.images_per_epoch",
        "data.resident_limit_mb",
        "train.beta",
        "seed",
        "data.split_seed",
        "attention.projection_steps",
        "attention.latent_batch_size",
    ):
        _require(config, key, lambda value: value >= 0, "0 or more")
    _require(config, "seed", lambda value: value < 2**31, "less than 2**31")
    _require(config, "attention.projection_steps", lambda v: v <= 100, "at most 100")
    for key in ("train.learning_rate", "train.beta", "data.rotation", "data.shift"):
        _require(config, key, math.isfinite, "finite")
    if not config.train.steps:
        _require(config, "train.epochs", lambda v: v > 0, "greater than 0 where train.steps is 0")
    for key in ("evaluate.styles", "evaluate.layers"):
        _require(config, key, len, "a tuple of at least one name")
    _require(config, "num_seeds", lambda value: value > 0, "greater than 0")
    last = config.seed + config.num_seeds - 1
    _require(config, "num_seeds", lambda _: last < 2**31, "so small that all seeds are below 2**31")
    for key in ("attention.style", "evaluate.styles"):
        styles = f"of {', '.join(attention.STYLES)}"
        _require(config, key, lambda value: _all_of(value, attention.STYLES), styles)
    kinds = f"one of {', '.join(calibration.KINDS)}"
    _require(config, "attention.calibration", lambda v: v in calibration.KINDS, kinds)
    if config.attention.style == "authors_code":
        known = "none with style=authors_code, whose maps depend on their batch by a factor"
        _require(config, "attention.calibration", lambda v: v == "none", known)
    _require(config, "parallel.mode", lambda v: v in parallel.MODES, "pmap or shard_map")
    _validate_checkpoints(config)
    _require(config, "data.validation_fraction", lambda v: 0 < v < 1, "between 0 and 1")
    _require(config, "data.channels", lambda v: v in (0, 1, 3), "1 (grey), 3 (colour) or 0 (auto)")
    modes = f"one of {', '.join(feed.MODES)}"
    _require(config, "data.resident", lambda v: v in feed.MODES, modes)
    categories = (*mvtec_ad.CATEGORIES, *mvtec_ad.GROUPS) if config.data.name == "mvtec_ad" else ()
    known = f"one of {', '.join(categories)}" if categories else "empty unless data.name=mvtec_ad"
    _require(config, "data.category", lambda v: v in (categories or ("",)), known)
    dtypes = ("float32",) if config.factor.gamma or config.factor.ad_weight else DTYPES
    known = f"one of {', '.join(dtypes)} (with a discriminator float32)"
    _require(config, "train.dtype", lambda v: v in dtypes, known)
    _validate_factor(config)
    models.validate(config)


def _validate_checkpoints(config: ml_collections.ConfigDict) -> None:
    every = config.train.checkpoint_every
    known = f"a multiple of train.checkpoint_every={every}, as no others are saved; 0 is none"
    _require(config, "train.keep_every", lambda v: v % every == 0, known)
    known = "best, latest or all"
    _require(config, "evaluate.checkpoint", lambda v: v in ("best", "latest", "all"), known)
    if jax.process_count() > 1:
        known = "best or latest with several processes: score all with one, in --mode=evaluate"
        _require(config, "evaluate.checkpoint", lambda v: v != "all", known)


def which_checkpoint(config: ml_collections.ConfigDict) -> str:
    """The one checkpoint that is explained and whose scores count: `best` or `latest`."""
    return "latest" if config.evaluate.checkpoint == "latest" else "best"


def _require(config, key, accepts, expected) -> None:
    value = config
    for part in key.split("."):
        value = value[part]
    if not accepts(value):
        raise UserError(f"--config.{key}={shown(repr(value))} must be {expected}.")


def _all_of(value: str | tuple, known: tuple[str, ...]) -> bool:
    """Whether a name, or each of several, is known; a tuple of the user's may hold anything."""
    return all(one in known for one in ((value,) if isinstance(value, str) else value))


def _validate_factor(config: ml_collections.ConfigDict) -> None:
    sources = ("auto", *dsprites.SOURCES)
    _require(config, "data.source", lambda v: v in sources, f"one of {', '.join(sources)}")
    if config.data.name == "dsprites":
        _require(config, "data.image_size", lambda v: v == 64, "64, as dSprites' images are")
        channels = models.image_shape(config.model.name, 64, config.data.channels)[-1]
        known = "dsprites, or another model of 64 x 64 grey images (data.channels=1)"
        fits = config.model.name not in ("mnist", "ucsd_ped1") and channels == 1
        _require(config, "model.name", lambda _: fits, known)
    else:
        for key in ("factor.gamma", "factor.ad_weight"):
            _require(config, key, lambda v: v == 0, "0 unless data.name=dsprites")
        return
    for key in ("factor.gamma", "factor.ad_weight"):
        _require(config, key, lambda v: 0 <= v < math.inf, "0 or more, and finite")
    _require(config, "evaluate.points", lambda v: v >= 100, "100 or more")
    rate = "greater than 0, and finite"
    _require(config, "factor.learning_rate", lambda v: 0 < v < math.inf, rate)
    if config.factor.ad_weight:
        most = config.model.latents // 2
        within = f"from 1 to {most}, as no latent of model.latents={config.model.latents} is in two"
        _require(config, "factor.ad_pairs", lambda v: 1 <= v <= most, within)


def save_or_compare(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes `config.json` into a new workdir; refuses a workdir made with another config.

    A workdir without a checkpoint counts as new: a run that ended before its first one, for
    want of its weights say, may come again with a config that mends it.

    Args:
      config: of this call.
      workdir: created if missing.

    Raises:
      UserError: if the workdir cannot be written, or was made with other values of keys that
        change the training; the message lists them.
    """
    path = workdir / "config.json"
    kept = ("checkpoints/[0-9]*", "seed_*/checkpoints/[0-9]*")  # of one seed, and of several
    if path.exists() and any(True for pattern in kept for _ in workdir.glob(pattern)):
        compare(config, workdir)
        return
    if not distributed.is_main():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        now = json.loads(config.to_json())
        with whole_files.writing(path) as temporary:
            temporary.write_text(json.dumps(now, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror}): choose another folder."
        ) from error


def load(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a run; keys that a later version added have their defaults.

    Raises:
      UserError: if there is none, it cannot be read, or its values cannot be.
    """
    config = _read(workdir)
    try:
        validate(config)
    except (ValueError, TypeError) as error:
        raise _unreadable(workdir, error) from error
    return config


def _read(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    require_run(workdir)
    path, config = workdir / "config.json", default_config()
    try:
        config.update(json.loads(path.read_text()))
        if None in flat(json.loads(config.to_json())).values():
            raise ValueError("a key is null")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _unreadable(workdir, error) from error
    return config


def _unreadable(workdir: pathlib.Path, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    path = workdir / "config.json"
    return UserError(
        f"{path} cannot be read ({shown(reason)}): repair it, or give another --workdir."
    )


def require_run(workdir: pathlib.Path) -> None:
    """Refuses a workdir without a run."""
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds no run: train it first (--mode=train).")


def compare(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses a workdir that was made with another config; see `save_or_compare`."""
    before, now = (flat(json.loads(one.to_json())) for one in (_read(workdir), config))
    differing = [
        f"{shown(key)} (there {shown(repr(before.get(key, 'absent')))}, "
        f"now {shown(repr(now.get(key, 'absent')))})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(_FREE_KEYS)
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config: {', '.join(differing)}. "
            "Give another --workdir, or the values of the run that is there."
        )


def flat(tree: dict, prefix: str = "") -> dict:
    """Nested keys with dots between them."""
    flattened = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flattened |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flattened
