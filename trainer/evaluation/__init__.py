"""Benchmarks as they are drawn and scored."""
