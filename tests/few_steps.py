"""A few steps of small models on all devices of all processes; run by test_distributed.py.

python tests/few_steps.py FILE [flags about processes, as of vae_attn.main]

FILE, an .npz, gets each step's loss and the parameters behind the last one, for every model and
way to run it in parallel.
"""

import sys

import jax
import numpy as np
import optax
import small_models
from absl import app, flags

from vae_attn.data.augment import Augmentation
from vae_attn.models.discriminator import Discriminator
from vae_attn.training import distributed, factor, parallel, state, steps

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
BATCH_SIZE, NUM_STEPS = 16, 3


def model_of(function):
    return function(latents=3, image_shape=(8, 8, 1), axis_name=steps.AXIS)


def make(name):
    """The first state, the update, and the columns of a batch's indices."""
    # Not Adam: it makes whole steps of the rounding errors in a gradient that is truly 0, such
    # as a bias' in front of a batch normalisation.
    tx = optax.sgd(1e-3, momentum=0.9)
    if name != "factor":
        model = model_of(small_models.residual if name == "resnet" else small_models.plain)
        augment = Augmentation(rotation=20.0)
        update = steps.make_update_fn(
            model=model, tx=tx, augment=augment, combine=steps.beta_elbo(1.0)
        )
        return state.create(model=model, tx=tx, seed=1), update, ()
    networks = {
        "model": model_of(small_models.plain),
        "discriminator": Discriminator(units=16),
        "tx": tx,
        "discriminator_tx": optax.sgd(1e-2),
    }
    update = factor.make_factor_update_fn(
        **networks,
        objective=factor.FactorObjective(gamma=4.0, ad_weight=1.0, ad_layer="conv1"),
        pixels_of=steps.to_unit,
    )
    return factor.create(**networks, seed=1), update, (2,)


def main(argv):
    values = flags.FLAGS.flag_values_dict()
    if values["num_processes"]:
        names = ("coordinator_address", "num_processes", "process_id")
        distributed.initialize(**{name: values[name] for name in names})
    results = {}
    images = parallel.replicate(IMAGES)
    for name in ("vae", "resnet", "factor"):
        first, update, columns = make(name)
        # On one device both are the same; it is what the others are compared with.
        for mode in parallel.MODES if jax.device_count() > 1 else ("pmap",):
            run = parallel.parallelize(update, mode=mode, batch_size=BATCH_SIZE)
            current = parallel.replicate(first)
            losses = []
            for step in range(NUM_STEPS):
                random = np.random.default_rng(step)
                indices = random.integers(0, 20, (BATCH_SIZE, *columns)).astype(np.int32)
                current, metrics = run(current, images, indices)
                losses.append(float(metrics["loss"]))
            leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(current))
            results |= {
                f"{name}/{mode}/{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves
            }
            results[f"{name}/{mode}/loss"] = np.array(losses)
    if distributed.is_main():
        np.savez(argv[1], **results)
    print(f"{jax.process_count()} x {jax.local_device_count()} done", file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_string("coordinator_address", None, "")
    flags.DEFINE_integer("num_processes", None, "")
    flags.DEFINE_integer("process_id", None, "")
    app.run(main)
