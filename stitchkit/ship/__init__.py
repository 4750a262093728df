"""From a ledger to a network in use."""
