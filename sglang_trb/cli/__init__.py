"""The command line: `trb`."""
