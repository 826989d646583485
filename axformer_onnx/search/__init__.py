"""Searches: from an Anatomy and a scorer of plans to a Plan. Nothing in here but `stages` knows of graphs."""
