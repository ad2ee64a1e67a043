"""Scripts that measure mpt_jax; not part of the package."""
