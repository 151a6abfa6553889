"""The networks: plain mathematics, how it is split over ranks, and how checkpoints become shards."""
