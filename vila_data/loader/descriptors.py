"""What is said where a process may open no more files."""

from __future__ import annotations

import errno

from vila_data.core.errors import RunError


def out_of_descriptors(lent: int, who: str = "the process", holder: str = "it") -> RunError:
    """The error of `who` may open no more files. lent: batches that `holder` keeps; each costs both a descriptor."""
    held = "1 batch" if lent == 1 else f"{lent} batches"
    fewer = "hold fewer of them (clone what is kept), or " if lent else ""
    return RunError(
        f"stream: {who} may open no more files while {holder} holds {held}: {fewer}raise `ulimit -n`, and "
        "`ulimit -Hn` where that is the limit"
    )


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, the limit of open files of the process or the machine."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False
