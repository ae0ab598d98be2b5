"""How a model learns: snapshots of activations, weights and gradients, and measures of them."""
