"""Fine-tuning: the loop, its optimizer, its ranks and its checkpoints."""
