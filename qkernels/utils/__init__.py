"""Small helpers that several parts share. None of them needs torch."""
