"""The SOAP side of the simulated host, on pyVmomi's own codec."""
