"""The Pico decoder: layers, attention kernels, loss, pretrained weights and the transformers model."""
