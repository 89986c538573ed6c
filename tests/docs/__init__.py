"""The documentation is run: every command, every program, every generated page."""
