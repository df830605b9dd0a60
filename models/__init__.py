"""Networks, activation quantisers, neurons and checkpoints."""
