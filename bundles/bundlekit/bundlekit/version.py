"""Version of the package, which the caches of prepared cases are keyed by."""

__version__ = "0.3.0"
