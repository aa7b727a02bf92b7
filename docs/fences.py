"""A hook of mkdocs: what stands behind the language of a code block is for the tests alone."""

import re


def on_page_markdown(markdown: str, **_) -> str:
    """The page with the language alone behind each fence."""
    return re.sub(r"^```(\w+) [^\n]*$", r"```\1", markdown, flags=re.M)
