"""Which experiment a config asks for."""

import ml_collections

from vae_attn.data import sources
from vae_attn.experiments.anomaly.experiment import AnomalyExperiment
from vae_attn.experiments.disentanglement.experiment import DisentanglementExperiment
from vae_attn.experiments.protocol import Experiment

_KINDS = {sources.ANOMALY: AnomalyExperiment, sources.FACTORS: DisentanglementExperiment}


def of(config: ml_collections.ConfigDict) -> type[Experiment]:
    """The experiment for the kind of data that `data.name` gives."""
    return _KINDS[sources.kind_of(config.data.name)]
