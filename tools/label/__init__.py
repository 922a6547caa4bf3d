"""MONAI Label with this project's bundles: its environment, its app folder, its server."""

from tools.label.server import label
