"""The HTTP side: what becomes of each of SGLang's routes, and our own."""
