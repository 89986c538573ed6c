"""Looking at what there is: tables for people, JSON for programs."""
