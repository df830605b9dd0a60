"""What a machine with an NVIDIA GPU runs: `make gpu`."""
