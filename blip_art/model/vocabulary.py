"""A BERT tokenizer's files, read without transformers, which would import torch.

    read_vocabulary(Path("tokenizer")).tokenizer().encode("a sun").ids

The scorer counts tokens with it, and blip_art.model.tokenizer is built on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from blip_art.errors import UserError
from blip_art.files import read_json

_NEEDED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class Vocabulary(NamedTuple):
    """What the files of a tokenizer folder say."""

    tokens: list[str]
    """By number."""
    added: list[str]
    """Tokens after those, which are never cut into pieces."""
    options: dict[str, bool | None]
    """Of tokenizer_config.json: do_lower_case, strip_accents, tokenize_chinese_chars,
    clean_up_tokenization_spaces."""

    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer` of the tokens, without the added ones."""
        from tokenizers import BertWordPieceTokenizer

        return BertWordPieceTokenizer(
            vocab={token: number for number, token in enumerate(self.tokens)},
            lowercase=self.options["do_lower_case"], strip_accents=self.options["strip_accents"],
            handle_chinese_chars=self.options["tokenize_chinese_chars"])._tokenizer


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read tokenizer.json, or else vocab.txt, as BertTokenizerFast.from_pretrained would.

    Raises:
        UserError: neither is there, a file is damaged, or it is not BERT's kind.
    """
    try:
        file = next((folder / name for name in ("tokenizer.json", "vocab.txt")
                     if (folder / name).is_file()), None)
    except OSError as error:  # the folder may not be searched
        raise UserError(f"cannot read the tokenizer at {folder}: {error.strerror}; give another "
                        "model.tokenizer") from error
    if file is None:
        raise UserError(f"tokenizer folder {folder} has no vocab.txt or tokenizer.json")
    tokens, added = _read_json_vocabulary(file) if file.suffix == ".json" else (
        _read_text_vocabulary(file), [])
    missing = [token for token in _NEEDED if token not in tokens]
    if missing:
        raise UserError(f"{file} has no {', '.join(missing)}; fetch bert-base-uncased's, or train "
                        "one with 'python -m blip_art.model.tokenizer'")
    # transformers joins "it's" and the like again only where it reads a vocab.txt.
    return Vocabulary(tokens, added, _read_options(folder / "tokenizer_config.json", {
        "do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None,
        "clean_up_tokenization_spaces": file.suffix == ".txt"}))


def _read_text_vocabulary(file: Path) -> list[str]:
    """Tokens by number: one a line."""
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); fetch "
                        "it again") from error
    first: dict[str, int] = {}
    for number, token in enumerate(lines, 1):
        if not token or first.setdefault(token, number) != number:
            what = f"repeats '{token}' of line {first[token]}" if token else "is empty"
            raise UserError(f"{file}: line {number} {what}, and each line must be a token of its "
                            "own; fetch it again")
    return lines


def _read_json_vocabulary(file: Path) -> tuple[list[str], list[str]]:
    """Tokens by number, and those that were added to them, which are never cut into pieces."""
    content = read_json(file)
    try:
        if content["model"]["type"] != "WordPiece":
            raise UserError(f"{file} is a {content['model']['type']} tokenizer, and BLIP's is "
                            "BERT's WordPiece; give bert-base-uncased's")
        numbers: dict[str, int] = content["model"]["vocab"]
        tokens = sorted(numbers, key=numbers.__getitem__)
        if [numbers[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("numbers of tokens are not 0, 1, 2, …")
        added = sorted((entry["id"], entry["content"]) for entry in content.get("added_tokens", ())
                       if entry["content"] not in numbers)
        if not all(isinstance(text, str) for _, text in added):
            raise ValueError("an added token is no text")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not a tokenizer ({type(error).__name__} {error}); fetch it "
                        "again") from error
    return tokens, [text for _, text in added]


def _read_options(file: Path, defaults: dict[str, bool | None]) -> dict[str, bool | None]:
    """What a tokenizer_config.json says of `defaults`, if there is one."""
    content = read_json(file) if file.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a tokenizer's configuration; fetch it again")
    options = {name: content.get(name, default) for name, default in defaults.items()}
    for name, value in options.items():
        if not isinstance(value, bool) and (value, defaults[name]) != (None, None):
            raise UserError(f"{file}: {name} must be true or false, not {value!r}; fetch it again")
    return options
