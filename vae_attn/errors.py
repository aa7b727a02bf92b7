"""The one exception for what a user can mend: bad input, at the edge where it enters."""


class UserError(ValueError):
    """Bad input, told in one sentence that names the file, key or value and the remedy.

    `vae_attn.main` prints the message without a traceback and exits with code 2.
    """


def shown(text: str) -> str:
    """A text from outside as a message holds it: on one line, and no longer than 200 characters."""
    return text if text.isprintable() and len(text) <= 200 else f"{ascii(text[:200])[:400]}..."
