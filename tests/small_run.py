"""vae_attn.main with a small model in place of the config's; takes the same flags.

With SECONDS_A_STEP in the environment every step takes at least that long.
"""

import os
import time

from vae_attn import main
from vae_attn.data import sampling
from vae_attn.models import build as registry
from vae_attn.models import tables
from vae_attn.models.vae import Architecture

SMALL = Architecture(
    name="mnist",
    image_shape=(28, 28, 1),
    encoder=(
        tables.Conv("conv1", 4, 4, 4, 0),
        tables.ReLU("conv1_relu"),
        tables.Conv("conv2", 4, 3, 1, 1),
        tables.Flatten(),
    ),
    decoder=(
        tables.Linear("fc1", 196),
        tables.ReLU("fc1_relu"),
        tables.Unflatten(7, 7, 4),
        tables.ConvTranspose("convtr1", 1, 4, 4, 0),
    ),
    initialization="torch",
)


def slow(function, seconds):
    def slowed(**options):
        time.sleep(seconds)
        return function(**options)

    return slowed


if __name__ == "__main__":
    registry.architecture = lambda name, image_size: SMALL
    sampling.batch_indices = slow(
        sampling.batch_indices, float(os.environ.get("SECONDS_A_STEP", "0"))
    )
    main.run()
