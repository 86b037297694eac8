"""One file a command. Stages never import each other; they meet only through shards."""
