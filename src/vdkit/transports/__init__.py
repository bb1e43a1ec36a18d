"""Ways to a disk's bytes: file, nbd, nbdssl."""
