"""The configuration of a run: one YAML file, every field documented."""
