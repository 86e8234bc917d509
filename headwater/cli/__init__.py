"""The command line: one module per command. Imports nothing slow before a command runs."""
