"""What has to be seen once where a GPU is: ``scripts/gpu-check``."""
