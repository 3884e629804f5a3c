"""Enforcement: a plan bound to a running guest, and the loop that answers its events. No parser, no compiler."""
