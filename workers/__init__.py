"""A group: the only place where the queue meets the model."""
