"""From configuration to objects: the only code that knows both."""
