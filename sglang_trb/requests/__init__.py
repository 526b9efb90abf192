"""Every field of every request that a blending server takes, described once: types, ranges, errors by name."""
