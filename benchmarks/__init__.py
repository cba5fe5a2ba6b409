"""What the library costs, measured against the bare driver in the same run."""
