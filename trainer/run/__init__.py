"""One run, from the first push to the last evaluation."""
