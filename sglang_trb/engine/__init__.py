"""Everything that touches SGLang's internals, checked with sglang 0.5.21; nothing outside this package does."""
