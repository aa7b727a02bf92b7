"""The one exception for what a user can mend: bad input, at the edge where it enters."""


class UserError(ValueError):
    """Bad input, told in one sentence that names the file, key or value and the remedy.

    `vae_attn.main` prints the message without a traceback and exits with code 2.
    """


def shown(text: str, most: int = 200) -> str:
    """A text from outside as a message holds it: on one line, and no longer than `most`."""
    cut = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:most])
    return cut + "..." * (len(text) > most)
