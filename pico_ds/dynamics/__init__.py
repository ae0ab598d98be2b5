"""Learning dynamics: snapshots of activations, weights and gradients, and measures of them."""
