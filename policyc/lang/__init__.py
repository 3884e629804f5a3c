"""The policy language: text in, syntax tree out, and back. Importing this package does not load the parser library."""
