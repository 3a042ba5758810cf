"""Captions and references in, scores out: BLEU, METEOR, ROUGE-L, CIDEr and SPICE.

    python -m blip_art.score REFS.json RESULTS.json
"""
