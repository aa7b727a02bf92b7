"""FactorVAE, AD-FactorVAE, beta-VAE or VAE on dSprites, the report's fourth claim.

    python -m vae_attn.main --config=configs/dsprites.py                    # FactorVAE, 32 latents
    python -m vae_attn.main --config=configs/dsprites.py:ad_factor_vae      # AD-FactorVAE
    python -m vae_attn.main --config=configs/dsprites.py:beta_vae,10        # beta-VAE, 10 latents
    python -m vae_attn.main --config=configs/dsprites.py:vae

Nothing to download: without `--config.data.dir` all 737,280 images are drawn here. To learn from
the official ones give the folder of their `.npz`, or of tensorflow-datasets' `dsprites/`. A look
at everything in minutes: `--config.train.steps=500`.
"""

import ml_collections

from vae_attn.config import default_config
from vae_attn.errors import UserError, shown

# Kim & Mnih (2018) compare at gamma 40; lambda 1 weighs L_AD as it is; beta 4: Higgins et al.
_VARIANTS = {
    "factor_vae": {"train.objective": "factor_vae", "factor.gamma": 40.0},
    "ad_factor_vae": {
        "train.objective": "factor_vae",
        "factor.gamma": 40.0,
        "factor.ad_weight": 1.0,
    },
    "beta_vae": {"train.beta": 4.0},
    "vae": {},
}


def get_config(variant: str = "factor_vae") -> ml_collections.ConfigDict:
    """The config; `variant` is an objective, a number of latents, or both with a comma between."""
    config = default_config()
    config.data.name = "dsprites"
    config.data.dir = ""
    config.data.image_size = 64
    config.model.name = "dsprites"
    config.train.batch_size = 64
    config.train.steps = 300_000
    config.train.learning_rate = 1e-4
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.attention.style = "paper"
    config.attention.layer = "conv3"
    config.evaluate.checkpoint = "latest"
    objective, latents = "factor_vae", 32
    for part in variant.split(","):
        if part in _VARIANTS:
            objective = part
        elif part.isdecimal() and len(part) < 10 and int(part) > 1:
            latents = int(part)
        else:
            raise UserError(
                f"the config's variant {shown(repr(part))} is unknown: give one of "
                f":{', :'.join(_VARIANTS)}, a number of latents of 2 or more, "
                "or both, as in :factor_vae,10."
            )
    config.update_from_flattened_dict(_VARIANTS[objective])
    config.model.latents = latents
    return config
