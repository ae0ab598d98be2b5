"""CUDA tensors without a GPU, a driver and memory. They have shapes, types and a device, and no values.

torch's fake tensors run on `device="cuda"` with a CPU build of torch, once a device guard for CUDA is registered. torch
then raises if tensors of two devices or of wrong types meet, and if the host reads a value from the device.
"""
