"""The one exception for errors that the user can fix: bad input, where it enters."""


class UserError(ValueError):
    """Bad input, reported in one sentence that names the file, key or value and the remedy.

    `vae_attn.main` prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 2  # another attempt would not help; the starters of `launch/` make none


class UnreachableError(UserError):
    """An error that another attempt alone may fix."""

    exit_code = 1


def shown(text: str, most: int = 200) -> str:
    """A text from outside, made fit for a message: on one line, and no longer than `most`."""
    cut = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:most])
    return cut + "..." * (len(text) > most)
