"""Fine-tune BLIP for art captioning on a Slurm cluster, score it, report it."""

__version__ = "0.1.0"
