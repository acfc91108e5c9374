"""The phases of a run: dense, gates and recovery, and what they share."""
