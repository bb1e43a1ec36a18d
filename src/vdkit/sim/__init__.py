"""The simulated ESXi/vCenter host."""
