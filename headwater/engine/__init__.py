"""The engine: a network as a list of operations, and relevance sent back through it. Imports nothing above itself."""
