"""Commands around the bundles: `python -m tools --help`."""
