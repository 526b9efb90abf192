"""The main process: requests in, answers out, weight updates guarded, all processes ending together."""
