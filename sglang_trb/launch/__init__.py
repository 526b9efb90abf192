"""Starting a server: its configuration file, and a server of one's own for the length of a `with` block."""
