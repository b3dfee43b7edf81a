"""What to say where a library is missing that comes with an extra of this package."""


def missing(what: str, library: str | None, extra: str = "ttft") -> str:
    """That ``what`` needs the library, and how to install the extra: no index has this package."""
    return f"{what} needs {library}: pip install '.[{extra}]' in its checkout"
