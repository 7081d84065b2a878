"""What is attached: found by walking the kernel, which is the only registry there is."""
