"""Which experiment a config asks for."""

import importlib

import ml_collections

from vae_attn.data import sources

# By name, as scikit-learn, which scores factors, and pages load slowly. The last is a module whose
# `validate` checks further keys; "" for none.
_KINDS = {
    sources.ANOMALY: ("vae_attn.experiments.anomaly.experiment", "AnomalyExperiment", ""),
    sources.FACTORS: (
        "vae_attn.experiments.disentanglement.experiment",
        "DisentanglementExperiment",
        "vae_attn.experiments.disentanglement.representation",
    ),
}


def of(config: ml_collections.ConfigDict) -> type:
    """The `protocol.Experiment` for the kind of data that `data.name` gives."""
    module, name, _ = _KINDS[sources.of(config).kind]
    return getattr(importlib.import_module(module), name)


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for keys that experiments of this kind cannot take."""
    _, _, module = _KINDS[sources.of(config).kind]
    if module:
        importlib.import_module(module).validate(config)
