"""Attention kernels. All compute the same function; they differ in speed and availability."""
