"""Captions and references in, scores out: BLEU, METEOR, ROUGE-L, CIDEr and SPICE.

    python -m blip_art.score REFS.json RESULTS.json

All read the same text: Penn Treebank tokens, lower case, without punctuation, as COCO's evaluation
does. Values are those of pycocoevalcap.

Bleu_1 to Bleu_4 (Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine
    translation"): geometric mean of the shares of the captions' groups of 1 to n words that a
    reference has (a group counts as often as one reference has it), over all pictures at once;
    times exp(1 - r/c) where the c words of the captions are fewer than the r words of the
    references closest in length. The value of one picture says little.
METEOR (Denkowski & Lavie 2014, "Meteor universal"): words are aligned with the best reference by
    form, stem, synonym and paraphrase; harmonic mean of weighted precision and recall, less a
    penalty for scattered matches. The value of a set pools the counts of its pictures.
ROUGE_L (Lin 2004, "ROUGE: a package for automatic evaluation of summaries"): F-score, recall
    counting 1.2 times, of the longest common subsequence; the best precision and the best recall
    over the references; mean over pictures.
CIDEr (Vedantam et al. 2015, "CIDEr: consensus-based image description evaluation"; its variant D):
    cosine of vectors of word groups of 1 to 4 words, weighted by how few pictures' references have
    the group, counts clipped, with a penalty on length; mean over references and sizes, times 10;
    mean over pictures. The weights come from the whole set of references: parts do not average.
SPICE (Anderson et al. 2016, "SPICE: semantic propositional image caption evaluation"): captions are
    parsed into objects, attributes and relations; F-score of these against those of all references
    together, synonyms matching; mean over pictures.
"""
