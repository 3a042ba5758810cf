"""The captioner: BLIP's vision encoder and text decoder, their weights and their decoding."""
