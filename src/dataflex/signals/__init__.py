"""What an algorithm needs to know about the samples, measured with torch or read from files."""
