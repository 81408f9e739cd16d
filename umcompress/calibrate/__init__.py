"""Statistics for passes: declared (declare), collected in one sweep (collect), read frozen (statistics)."""
