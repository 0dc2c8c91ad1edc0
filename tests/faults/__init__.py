"""Faults: bad input must be assert_refused in words, odd input must give the same number, and
every transform must agree with eager mode."""
