"""The way into the kernel and out of it."""
