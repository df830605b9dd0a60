"""How fast a time step is: ours beside everything a user could pick instead, in one interleaved run."""
