"""The tables of a page, between ``<!-- table NAME FILE -->`` and ``<!-- end -->``."""

import re
from collections.abc import Callable


def filled(page: str, make: Callable[[str, str | None], str]) -> str:
    """The page with each table made by its name and, if its mark names one, its file."""
    marked = r"(<!-- table (\w+)(?: (\S+))? -->)\n.*?(<!-- end -->)"
    return re.sub(
        marked, lambda m: f"{m[1]}\n{make(m[2], m[3])}\n{m[4]}", page, flags=re.DOTALL
    )
