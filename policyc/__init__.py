"""policyc: a policy language for KVM introspection, its compiler and its enforcement runtime."""

__all__ = ["__version__"]

__version__ = "0.1.0"
