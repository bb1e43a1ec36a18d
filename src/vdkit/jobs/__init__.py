"""Use cases that join the control plane and the data plane."""
