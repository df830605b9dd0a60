"""What int8 convolutions keep exact on every processor."""

LARGEST_BYTE = 128
"""Two products of such bytes with int8 weights fit into int16, where x86 processors without VNNI add them."""
