"""Open what contains the text: compressed files and archives, one inside another, a block at a time."""
