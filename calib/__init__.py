"""Everything estimated from data, as pure functions on arrays, and the commands that measure it on the engine."""
