"""Faults: bad input must be refused in words, odd input must give the same number, and every transform must agree with eager mode."""
