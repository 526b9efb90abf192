"""What is measured besides a run, and over several."""
