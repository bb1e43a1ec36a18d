"""Additions to pyVmomi's tables of SOAP types, for the client and the simulated host alike."""
