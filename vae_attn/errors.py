"""The one exception for what a user can mend: bad input, at the edge where it enters."""


class UserError(ValueError):
    """Bad input, told in one sentence that names the file, key or value and the remedy.

    `vae_attn.main` prints the message without a traceback and exits with code 2.
    """
