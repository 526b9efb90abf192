"""The client side: collects blended rollouts over HTTP and trains the student on them."""

import trainer.environment  # noqa: F401  # first: most of what is imported next loads torch
