"""A run to look at: inspect, preview, what-if, search, the report and the dataset card."""
