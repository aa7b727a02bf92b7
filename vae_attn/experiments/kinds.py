"""Which experiment a config asks for."""

import importlib

import ml_collections

from vae_attn.data import sources
from vae_attn.experiments.protocol import Experiment

# By name: a run imports its own alone, as scikit-learn, which scores factors, loads slowly.
_KINDS = {
    sources.ANOMALY: ("vae_attn.experiments.anomaly.experiment", "AnomalyExperiment"),
    sources.FACTORS: (
        "vae_attn.experiments.disentanglement.experiment",
        "DisentanglementExperiment",
    ),
}


def of(config: ml_collections.ConfigDict) -> type[Experiment]:
    """The experiment for the kind of data that `data.name` gives."""
    module, name = _KINDS[sources.of(config).kind]
    return getattr(importlib.import_module(module), name)
