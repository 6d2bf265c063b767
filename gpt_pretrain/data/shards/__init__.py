"""Token shards: the formats that can be read, and what they have in common."""
