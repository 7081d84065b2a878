"""What is known of endpoints, streams and calls: pure functions of what the maps hold."""
