"""What identifies a block of tokens: local and sequence hashes."""
