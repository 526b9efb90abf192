"""What lies in a checkpoint, read from its index and configuration: files, tensors, digests, memory it will take."""
