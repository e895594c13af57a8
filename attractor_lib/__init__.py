"""Self-attention as an attractor network: local energies, their dynamics, and learning without backpropagation."""
