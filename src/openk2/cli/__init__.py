"""The command line: one thin file per verb, which may import every room, inside its function."""
