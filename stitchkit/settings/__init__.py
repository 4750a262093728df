"""Everything a person may set: recipes, stitch configurations, flags, and how they are read and checked."""
