"""The Pico decoder and the heads of meta-learning."""
