"""`python -m vila_data.cli`."""

from vila_data.cli import main

main()
