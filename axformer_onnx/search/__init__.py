"""Searches: from an Anatomy and a scorer of plans to a Plan. Only `stages` knows of graphs."""
