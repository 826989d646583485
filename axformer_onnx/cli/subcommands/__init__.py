"""A file a subcommand: its object `command`, which is imported when it is called."""
