"""From cases to patches, reproducibly."""
