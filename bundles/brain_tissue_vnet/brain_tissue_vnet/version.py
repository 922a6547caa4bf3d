"""Version of the bundle's Python package; part of the key under which prepared cases are cached."""

__version__ = "0.2.3"
