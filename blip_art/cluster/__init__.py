"""Jobs: what is run, from which copy of the code, and where. No torch in here."""
