"""What a disk is: devices, extents, stores, chains and the engine that copies between them."""
