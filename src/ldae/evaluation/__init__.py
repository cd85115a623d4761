"""Features and what they are worth: linear, ridge and kNN probes, their protocols, and what to compare them with."""
