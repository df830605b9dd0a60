"""The paper's Table 2 on this machine: milliseconds at fixed T and with Dynamic Confidence, on all its backends."""
