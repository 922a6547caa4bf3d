"""Stands in for torchvision in MONAI Label's environment, see `tools.label.environment`.

MONAI Label imports two functions that write pictures, and calls them only to look into trainings of its own networks.
MONAI finds no `torchvision.models` here and goes on without, as it does where torchvision is not installed.
"""

__version__ = "0.0.0"
