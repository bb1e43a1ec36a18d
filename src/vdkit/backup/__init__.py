"""Repository, full and incremental backup, restore, verify: knows devices, not VMware."""
