"""From pictures and notations to annotations, and from annotations to batches."""
