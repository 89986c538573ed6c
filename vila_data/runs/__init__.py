"""The opened run, its stages, and the engine that makes them, in this process or on Ray."""
