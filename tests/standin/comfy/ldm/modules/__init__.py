"""Their parts."""
