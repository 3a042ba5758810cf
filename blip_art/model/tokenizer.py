"""BERT's WordPiece tokenizer with BLIP's two extra tokens, [DEC] and [ENC].

    python -m blip_art.model.tokenizer annotation/iconclassTrain.json -o tokenizer/
trains a small vocabulary for a data set of its own; fine-tuning BLIP needs bert-base-uncased.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from string import ascii_lowercase, digits

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from blip_art.errors import UserError, exit_cleanly
from blip_art.files import PathLike, written_aside
from blip_art.model.hub import cached_repository
from blip_art.model.vocabulary import read_vocabulary


class CaptionTokenizer:
    """Captions to token ids and back.

    With the vocabulary of bert-base-uncased [DEC] is 30522, [ENC] 30523 and [SEP], the end, 102
    (Li et al. 2022, https://arxiv.org/abs/2201.12086; salesforce/BLIP models/blip.py).
    """

    def __init__(self, name_or_folder: str) -> None:
        self.bert = _load(name_or_folder)
        self.bert.add_special_tokens({"bos_token": "[DEC]"})
        self.bert.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        self.dec_id: int = self.bert.get_vocab()["[DEC]"]
        self.enc_id: int = self.bert.get_vocab()["[ENC]"]
        self.end_id: int = self.bert.sep_token_id
        self.pad_id: int = self.bert.pad_token_id

    def __len__(self) -> int:
        return len(self.bert)

    def prompt_ids(self, prompt: str) -> list[int]:
        """[DEC] and the prompt's tokens: what every caption starts with.

        Raises:
            UserError: the vocabulary does not know a word of the prompt.
        """
        words = self.bert(_without_halves(prompt), add_special_tokens=False).input_ids
        if self.bert.unk_token_id in words:
            raise UserError(f"model.prompt '{prompt}' has a word that the vocabulary does not "
                            "know; choose another prompt or another model.tokenizer")
        return [self.dec_id, *words]

    def encode(self, captions: list[str], max_tokens: int,
               multiple: int | None = None) -> torch.Tensor:
        """Token ids (B, L) int64, [DEC] first, padded at the end.

        Args:
            max_tokens: longer captions are cut.
            multiple: L is a multiple of it; else it is the length of the longest caption.
        """
        batch = self.bert([_without_halves(caption) for caption in captions], padding="longest",
                          truncation=True, max_length=max_tokens, pad_to_multiple_of=multiple,
                          return_tensors="pt")
        batch.input_ids[:, 0] = self.dec_id
        ids: torch.Tensor = batch.input_ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return self.bert.decode(ids, skip_special_tokens=True).strip()

    def save(self, folder: PathLike) -> None:
        """Write the vocabulary, so that the folder is a tokenizer of its own."""
        self.bert.save_pretrained(str(folder))


def _without_halves(text: str) -> str:
    """JSON can hold half of an emoji (a lone surrogate), which no tokenizer takes."""
    return text.encode("utf-8", "ignore").decode()


def _load(name_or_folder: str) -> BertTokenizerFast:
    """What BertTokenizerFast.from_pretrained makes of the folder.

    That one guesses the kind of model from the folder's path where there is no
    tokenizer_config.json, and raises a bare Exception for a damaged file.

    Raises:
        UserError: no such tokenizer, a damaged file, or not BERT's kind.
    """
    folder = Path(name_or_folder).expanduser()
    try:
        if not folder.is_dir():
            folder = cached_repository(name_or_folder, "tokenizer")
    except OSError as error:  # too long a name, or a folder that may not be searched
        raise UserError(f"cannot read the tokenizer at {folder}: {error.strerror}; give another "
                        "model.tokenizer") from error
    vocabulary = read_vocabulary(folder)
    bert = BertTokenizerFast(tokenizer_object=vocabulary.tokenizer(), model_max_length=512,
                             **vocabulary.options)
    bert.add_tokens(vocabulary.added)
    return bert


def train_vocabulary(captions: list[str], folder: PathLike, size: int) -> Path:
    """Train a WordPiece vocabulary on `captions` and write `folder`/vocab.txt.

    Words that were never seen fall back to pieces, down to single letters, so the alphabet is
    always part of it.
    """
    trainer = BertWordPieceTokenizer(lowercase=True)
    spelled = [letter * 2 for letter in ascii_lowercase + digits]  # 'a' and, inside words, '##a'
    trainer.train_from_iterator([*map(_without_halves, captions), *spelled], vocab_size=size,
                                min_frequency=1, show_progress=False)
    vocabulary = sorted(trainer.get_vocab().items(), key=lambda item: item[1])
    target = Path(folder) / "vocab.txt"
    with written_aside(target) as aside:
        aside.write_text("".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.model.tokenizer", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="list of {image, caption} whose captions are learned from")
    parser.add_argument("-o", "--output", required=True, help="folder to write vocab.txt to")
    parser.add_argument("--size", type=int, default=2000, help="most tokens (default 2000)")
    parser.add_argument("--prompt", default="a picture of ",
                        help="model.prompt, whose words must be known (default '%(default)s')")
    args = parser.parse_args()
    from blip_art.data.datasets import load_pairs  # pulls in nothing a library user needs

    captions = [caption for pair in load_pairs(args.pairs) for caption in pair.captions]
    print(train_vocabulary([*captions, args.prompt], args.output, args.size))


if __name__ == "__main__":
    exit_cleanly(main)
