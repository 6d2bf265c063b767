"""Data behind a URL: downloads of texts, and shards that are read over the network and kept in a cache."""
