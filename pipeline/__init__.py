"""Everything that a client or an operator touches; imports no torch."""
