"""Engines: each runs an exported network one call at a time and owns its buffers."""
