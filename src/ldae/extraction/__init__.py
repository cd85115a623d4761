"""Features of whole data sets as tables that `datasets` opens: written shard by shard, indexed, searched."""
