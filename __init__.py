"""Deploy spiking neural networks that stop as soon as they are sure (Dynamic Confidence, arXiv 2303.10276)."""

__version__ = "0.1.0"
