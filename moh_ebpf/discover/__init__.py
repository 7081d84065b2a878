"""`discover`: listens without attaching, and proposes settings."""
