"""What every phase of training needs: objectives, precision, averages, ranks.

Owns how a step is computed, not which steps there are.
"""
