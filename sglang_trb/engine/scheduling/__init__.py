"""The scheduler process: which requests run, and what becomes of their tokens."""
