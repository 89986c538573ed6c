"""Run directories. Not `run`: once imported, a package of that name would replace the function `vila_data.run`."""
