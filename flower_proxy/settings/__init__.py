"""The options: declared once, set by the environment, a file and the command line."""
