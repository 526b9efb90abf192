"""The client side: collects blended rollouts over HTTP and trains the student on them."""
