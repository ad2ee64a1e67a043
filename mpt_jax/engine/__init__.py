"""The engine: one run, from its folder to its product, and its parts."""
