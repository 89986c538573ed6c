"""Runs programs one after another, each in a process group of its own that is forked when the imports are done.

    python forks.py MODULE ...      # what is imported before; any Python, nothing but its own library

A line of stdin is JSON: {"program": [what stands behind `python`], "variables": {...}, "stdout": file, "stderr": file}. The answer is a
line with the process's id as soon as it is there, and a line with its exit status when it has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from typing import Any


def become(job: dict[str, Any]) -> None:
    """Make this process what `python PROGRAM ARGUMENT ...` would have found, and run the program."""
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(job["stdout"], os.O_WRONLY), 1)
    os.dup2(os.open(job["stderr"], os.O_WRONLY), 2)
    os.environ.update(job["variables"])
    program, *arguments = job["program"]
    if program == "-m":
        sys.argv, sys.path[0] = arguments, os.getcwd()
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = job["program"], os.path.dirname(program)
        runpy.run_path(program, run_name="__main__")


def main(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            return become(json.loads(line))
        os.setpgid(child, child)  # here too: whoever reads its id finds the group
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
