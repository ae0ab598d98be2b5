"""pico_ds: first-order MAML pre-training of Pico language models under DeepSpeed ZeRO."""

__version__ = "0.1.0"
