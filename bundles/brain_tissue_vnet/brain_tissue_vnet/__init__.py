"""What the brain tissue V-Net bundle needs beyond MONAI, PyTorch, Ignite and TorchIO."""
