"""Variational autoencoders that explain themselves: attention maps for every latent, in JAX.

`vae_attn.load(workdir)` gives the explainer of a trained run.
"""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: `import vae_attn.attention` needs jax and no more.
    if name == "load":
        from vae_attn.experiments.anomaly.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
