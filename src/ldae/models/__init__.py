"""What a Hub checkpoint needs, in torch and transformers alone. The same files, flat, are a checkpoint's remote code."""
