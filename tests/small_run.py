"""vae_attn.main as a script beside `small_models`; takes the same flags.

With SECONDS_A_STEP in the environment every step takes at least that long.
"""

import os
import time

from vae_attn import main
from vae_attn.data import sampling


def slow(function, seconds):
    def slowed(**options):
        time.sleep(seconds)
        return function(**options)

    return slowed


if __name__ == "__main__":
    sampling.batch_indices = slow(
        sampling.batch_indices, float(os.environ.get("SECONDS_A_STEP", "0"))
    )
    main.run()
