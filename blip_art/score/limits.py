"""How long a caption can be, in tokens of a run's tokenizer or in words; texts are cut to it.

    limit = token_limit(RunDir("runs/demo"), config); limit.cut(["a reference that is too long"])

generate.max_length counts tokens, the prompt's included; the end token need not fit. The tokens are
those of blip_art.model.tokenizer, made with the `tokenizers` library alone: scoring does without
torch, which transformers imports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Protocol, Sequence

from blip_art.config import Config
from blip_art.data.captions import pre_caption
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.manifest import started_in
from blip_art.model.vocabulary import read_vocabulary
from blip_art.score.coco import cleaned

# More words than any caption has: references are not cut as training captions are.
ALL_WORDS = 10 ** 9


class Limit(Protocol):
    """The most that a caption can be."""

    most: int
    unit: str
    """'words' or 'tokens': score files hold `max_words` or `max_tokens`."""

    def longer(self, texts: Sequence[str]) -> int:
        """How many texts are longer."""

    def cut(self, texts: Sequence[str]) -> List[str]:
        """The beginning of each text."""


class WordLimit:
    """A number of words, for results whose tokenizer is not known."""

    unit = "words"

    def __init__(self, most: int) -> None:
        self.most = most

    def longer(self, texts: Sequence[str]) -> int:
        return sum(len(text.split()) > self.most for text in texts)

    def cut(self, texts: Sequence[str]) -> List[str]:
        return [" ".join(text.split()[:self.most]) for text in texts]


class TokenLimit:
    """A number of tokens of texts as the model is trained on them (see pre_caption)."""

    unit = "tokens"

    def __init__(self, tokenizer: WordPiece, most: int) -> None:
        self._tokenizer, self.most = tokenizer, most

    def longer(self, texts: Sequence[str]) -> int:
        return sum(len(encoding.ids) > self.most for encoding in self._encode(texts))

    def cut(self, texts: Sequence[str]) -> List[str]:
        """What the decoder would give for the first tokens, without a word that is not whole."""
        return self._tokenizer.decode([encoding.ids[:self._end(encoding.tokens)]
                                       for encoding in self._encode(texts)])

    def _encode(self, texts: Sequence[str]) -> List[Any]:
        return self._tokenizer.encode([pre_caption(cleaned(text), ALL_WORDS) for text in texts])

    def _end(self, tokens: Sequence[str]) -> int:
        end = self.most
        while 0 < end < len(tokens) and tokens[end].startswith("##"):
            end -= 1
        return end or self.most  # a first word that is too long stays, in part


def token_limit(run: RunDir, config: Config) -> TokenLimit:
    """What generate.max_length leaves of a caption after [DEC] and the prompt.

    Raises:
        UserError: the tokenizer is not to be found, cannot be read, or is not WordPiece.
    """
    tokenizer = WordPiece(_tokenizer_folder(run, config.model.tokenizer))
    [prompt] = tokenizer.encode([config.model.prompt])
    return TokenLimit(tokenizer, max(1, config.generate.max_length - 1 - len(prompt.ids)))


class WordPiece:
    """BERT's tokenizer of a folder: the tokens and the texts of CaptionTokenizer.

    Raises:
        UserError: `tokenizers` is not installed, or the folder has no WordPiece vocabulary.
    """

    def __init__(self, folder: Path) -> None:
        vocabulary = read_vocabulary(folder)
        try:
            self._bert = vocabulary.tokenizer()
        except ImportError as error:
            raise UserError("tokens are counted with the package 'tokenizers', which is not "
                            "installed; pip install tokenizers") from error
        # In the order in which CaptionTokenizer numbers what the vocabulary lacks.
        self._bert.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
        self._bert.add_tokens(vocabulary.added)
        self._bert.add_special_tokens(["[DEC]", "[ENC]"])
        self._joins_apostrophes = vocabulary.options["clean_up_tokenization_spaces"]

    def encode(self, texts: Sequence[str]) -> List[Any]:
        """The `ids` and `tokens` of each text, without [CLS] and [SEP]."""
        return list(self._bert.encode_batch(list(texts), add_special_tokens=False))

    def decode(self, ids: Sequence[Sequence[int]]) -> List[str]:
        """Texts, special tokens left out."""
        texts = self._bert.decode_batch([list(some) for some in ids])
        return [(text.replace(" ' ", "'") if self._joins_apostrophes else text).strip()
                for text in texts]


def _tokenizer_folder(run: RunDir, name: str) -> Path:
    """The folder that training found: from where it was started, from here, or in the hub cache."""
    for folder in (started_in(run) / Path(name).expanduser(), Path(name).expanduser()):
        if folder.is_dir():
            return folder
    try:
        from blip_art.model.hub import cached_repository
    except ImportError as error:
        raise UserError(f"no tokenizer folder {name}, and the package 'huggingface_hub', which "
                        "finds it in the hub cache, is not installed") from error
    return cached_repository(name, "tokenizer")
