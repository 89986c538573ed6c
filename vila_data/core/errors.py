"""The errors that users see.

    VilaDataError
    ├── UsageError      the call or the recipe is wrong            exit 2
    │   └── RecipeError   … at file:line key
    └── RunError        the data or a machine failed               exit 1
        ├── DataError     stored data is damaged or inconsistent
        └── StorageError  a store cannot be read, written or reached

An error that concerns one record or one image is not raised to the user: it
becomes that item's fate (`core.fates`).
"""

from __future__ import annotations


class VilaDataError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the command's exit status."""

    exit_code = 1


class UsageError(VilaDataError):
    """The call or its arguments are invalid. Nothing was done."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is wrong at a known place: `where` is ``file:line key``."""

    def __init__(self, where: str, problem: str) -> None:
        self.where = where
        self.problem = problem
        super().__init__(f"{where}: {problem}")


class RunError(VilaDataError):
    """The call was right, the run could not be finished; rerunning resumes it."""


class DataError(RunError):
    """Stored data is damaged or inconsistent."""


class StorageError(RunError):
    """A store cannot be read, written or reached."""
