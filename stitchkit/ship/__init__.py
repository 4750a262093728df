"""Choosing, exporting and showing stitches: from a ledger to a network in use."""
