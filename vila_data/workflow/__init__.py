"""Recipe to plan to run: what is to be done, and who does it."""
