"""The one exception for what a user can mend: bad input, at the edge where it enters."""


class UserError(ValueError):
    """Bad input, told in one sentence that names the file, key or value and the remedy.

    `vae_attn.main` prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 2  # no further attempt mends it; the starters of `launch/` then make none


class UnreachableError(UserError):
    """What another attempt may mend by itself."""

    exit_code = 1


def shown(text: str, most: int = 200) -> str:
    """A text from outside as a message holds it: on one line, and no longer than `most`."""
    cut = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:most])
    return cut + "..." * (len(text) > most)
