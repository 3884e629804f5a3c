"""The compiled policy: where it applies, what it decides there, and the artifact that carries both."""
