"""Memory on a card: known before the first step, on a machine without one."""
