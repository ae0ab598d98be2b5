"""The only package that imports deepspeed."""
