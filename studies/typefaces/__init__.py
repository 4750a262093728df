"""Letters and digits rendered from the fonts of a machine, split by typeface."""
