"""The errors that users see.

    VilaDataError
    ├── UsageError      the call or the recipe is wrong            exit 2
    │   └── RecipeError   … at file:line key
    └── RunError        the data or a machine is wrong             exit 1
        ├── DataError     bytes or columns are not what they should be
        └── StorageError  a store cannot be read, written or reached

An error that concerns one record or one image is not raised to the user: it
becomes that item's fate (`core.fates`).
"""

from __future__ import annotations


class VilaDataError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the command's exit status."""

    exit_code = 1


class UsageError(VilaDataError):
    """The call is wrong: nothing was done."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is wrong at a known place: `where` is ``file:line key``."""

    def __init__(self, where: str, problem: str) -> None:
        self.where = where
        self.problem = problem
        super().__init__(f"{where}: {problem}")


class RunError(VilaDataError):
    """The call was right, the run could not be finished; relaunching resumes it."""


class DataError(RunError):
    """Bytes or columns are not what they should be."""


class StorageError(RunError):
    """A store cannot be read, written or reached."""
