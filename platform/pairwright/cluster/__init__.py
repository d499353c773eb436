"""The stages on Ray: the only code that imports it."""
