"""A simulated host as a pytest fixture."""
