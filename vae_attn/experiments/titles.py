"""What titles and captions say of several seeds."""

import ml_collections


def of_seeds(config: ml_collections.ConfigDict, name: str) -> str:
    """Heading of a table: the data set's name and, of several seeds, which."""
    if config.num_seeds == 1:
        return name
    last = config.seed + config.num_seeds - 1
    return f"{name}: mean ± standard deviation of seeds {config.seed} to {last}"


def first_seed(config: ml_collections.ConfigDict) -> str:
    """For the captions of what shows one model: which of several seeds; nothing for one seed."""
    several = config.num_seeds > 1
    return f" Seed {config.seed}, the first of {config.num_seeds}." if several else ""


def all_seeds(config: ml_collections.ConfigDict, how: str) -> str:
    """For the captions of what shows all seeds: how; nothing for one seed."""
    return f" {config.num_seeds} seeds: {how}." if config.num_seeds > 1 else ""
