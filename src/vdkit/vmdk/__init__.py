"""The VMDK formats: a function from a store to a block device."""
