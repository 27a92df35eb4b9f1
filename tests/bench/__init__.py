"""`make bench`: ratios measured in turns within one run. Nothing here is a test."""
