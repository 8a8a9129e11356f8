"""What is between a recording and its outputs: pieces, batches, guards, files, several machines."""
