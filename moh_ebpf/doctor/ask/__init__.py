"""The questions whose answers are the facts."""
