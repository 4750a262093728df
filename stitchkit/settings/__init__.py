"""Everything a user may set: recipes, stitch configurations and flags, and how they are read and checked."""
