"""Variational autoencoders that explain themselves: attention maps for every latent, in JAX.

`vae_attn.load(workdir)` gives the explainer of a trained run. Maps of any encoder:
`make_attention_fn` (the published styles and contrast); `deeplift`, `integrated_gradients`,
`explain_score` and `make_attribution_fn` (signed maps that add up). Whether a map is true of its
latent: `vae_attn.faithfulness`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_attn.attention import make_attention_fn
    from vae_attn.attributions import (
        deeplift,
        explain_score,
        integrated_gradients,
        make_attribution_fn,
    )
    from vae_attn.experiments.anomaly.loading import load

# Imported when asked for; all but `counterparts` and `load` need jax and jaxtyping alone.
_SUBMODULES = ("attention", "attributions", "faithfulness", "counterparts", "losses")
# The module of each other name.
_MODULES = {
    "load": "vae_attn.experiments.anomaly.loading",
    "make_attention_fn": "vae_attn.attention",
    "deeplift": "vae_attn.attributions",
    "explain_score": "vae_attn.attributions",
    "integrated_gradients": "vae_attn.attributions",
    "make_attribution_fn": "vae_attn.attributions",
}
__all__ = [
    "__version__",
    "deeplift",
    "explain_score",
    "integrated_gradients",
    "load",
    "make_attention_fn",
    "make_attribution_fn",
]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
