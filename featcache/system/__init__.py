"""What every room needs of the machine: files written whole, JSON documents, threads, interrupts, a description."""
