"""The command line: one file per command, registered by main."""
