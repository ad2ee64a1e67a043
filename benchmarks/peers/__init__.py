"""The peers of mpt_jax on the same work; each needs its own environment."""
