"""A seeded grammar of English sentence pairs whose labels are computed, not annotated.

    lexicon      words, and which is a kind of which
    logic        what a sentence says, as linear constraints; entailment by integer programming
    quantified   "All poodles are sleeping." / "Some dogs in the park are not resting."
    agents       "The chef was thanked by the pilot." / "The chef thanked nobody."
    rows         balanced, disjoint sets of rows

Columns and labels are MNLI's: premise, hypothesis, label 0 entailment, 1 neutral, 2 contradiction.
"""
