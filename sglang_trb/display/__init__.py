"""Rollouts as people look at them: a finished response with its statistics, and the page that shows them."""
