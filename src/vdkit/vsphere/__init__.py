"""The control plane over pyVmomi: session, inventory, snapshots, changed areas, tickets."""
