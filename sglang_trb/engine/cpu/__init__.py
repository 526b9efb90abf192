"""A plain CPU as a platform of SGLang."""
