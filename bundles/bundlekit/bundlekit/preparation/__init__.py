"""From scans as they leave the scanner to a BraTS-like case, and from its mask back to them."""
