"""The command line: one module a command, each of which parses its arguments, calls the library and prints."""
