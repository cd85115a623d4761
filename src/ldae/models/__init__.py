"""The models. They need only torch and transformers; the same files, in one folder, are a checkpoint's remote code."""
