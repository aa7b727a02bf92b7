"""The flags of vae_attn.main within the tests' process."""

import sys

from absl import flags

from vae_attn import command_line


def parsed(monkeypatch, arguments):
    """The config that a command line gives, and the workdir that it has without --workdir.

    Both are None with --mode=report.
    """
    argv = ["main", *arguments]
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks there
    defined = set(flags.FLAGS)
    try:
        command_line.parse(argv)
        config = flags.FLAGS.config
        return config, None if config is None else command_line.default_workdir()
    finally:
        for name in set(flags.FLAGS) - defined:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for name in defined:
            flags.FLAGS[name].unparse()
