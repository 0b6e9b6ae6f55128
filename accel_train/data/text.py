"""Captions to token ids, with the `tokenizers` library alone: a worker starts without importing transformers."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from accel_train.errors import UserError
from accel_train.json_text import read_json

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TRIAL = "A word, 一个词。"
"""Read once when a tokenizer is opened: a part that its file promises and lacks shows only then."""
STRAIGHT_QUOTES = str.maketrans({"“": '"', "”": '"'})
PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
UNKNOWN_CHARACTER = "\ufdd0"
"""A noncharacter: no vocabulary has it, and no step of the tokenizer drops it or splits a word there."""
MISSED_IDEOGRAPHS = re.compile("([\U0002b820-\U0002b91f])")
"""Ideographs that the tokenizers library takes for letters: its range starts 256 too late."""
CHINESE_CLIP_MAX_WORD = 200
"""Characters of a longer word are one unknown token. transformers' limit, and ours elsewhere, is 100."""


class CaptionTokenizer:
    """Cuts or pads captions to a fixed length.

    `vocab_size` is the number of token ids, so embeddings need at least as many rows.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        pad_token: str,
        mask_token: str | None,
        uses_mask: bool,
        max_length: int,
        cleaning: Literal["none", "chinese_clip"] = "none",
    ) -> None:
        pad_id = tokenizer.token_to_id(pad_token)
        if pad_id is None:
            raise UserError(f"data.tokenizer: its padding token {pad_token!r} is not in its vocabulary.")
        if cleaning == "chinese_clip" and isinstance(tokenizer.model, models.WordPiece):
            tokenizer.model.max_input_chars_per_word = CHINESE_CLIP_MAX_WORD
        tokenizer.enable_truncation(max_length)
        tokenizer.enable_padding(length=max_length, pad_id=pad_id, pad_token=pad_token)
        self._tokenizer = tokenizer
        self._uses_mask = uses_mask
        self._cleaning = cleaning
        self.mask_id = tokenizer.token_to_id(mask_token) if mask_token is not None else None
        self.pad_id = pad_id
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def vocabulary(self) -> dict[str, int]:
        """Token ids by token, special ones too."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def num_tokens(self, text: str) -> int:
        """Tokens of a text, special ones included, as far as max_length."""
        if self._cleaning == "chinese_clip":
            text = chinese_clip_text(text)
        return sum(self._tokenizer.encode(text).attention_mask)

    def encode(
        self, text: str, *, mask_share: float = 0.0, generator: random.Random | None = None
    ) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask, both (max_length,) int64.

        With a generator each token that is not special becomes the mask token with probability `mask_share`. Models
        whose tokenizer lists no attention mask among its inputs (SigLIP) were trained to attend to padding: their mask
        is all ones.
        """
        if self._cleaning == "chinese_clip":
            text = chinese_clip_text(text)
        encoding = self._tokenizer.encode(text)
        ids = encoding.ids
        if generator is not None and mask_share:
            assert self.mask_id is not None  # open_tokenizer has checked it
            ids = [
                token if special or generator.random() >= mask_share else self.mask_id
                for token, special in zip(ids, encoding.special_tokens_mask, strict=True)
            ]
        mask = encoding.attention_mask if self._uses_mask else [1] * len(ids)
        return torch.tensor(ids), torch.tensor(mask)


def chinese_clip_text(text: str) -> str:
    """What the original trainer did to a caption: lower case, straight double quotes.

    Its own BERT tokenizer also kept private-use characters, as unknown ones, and set every ideograph apart. The
    tokenizers library drops the former and knows 256 ideographs too few, so both are put right here.
    """
    text = text.lower().translate(STRAIGHT_QUOTES)
    return MISSED_IDEOGRAPHS.sub(r" \1 ", PRIVATE_USE.sub(UNKNOWN_CHARACTER, text))


def open_tokenizer(
    path: str, max_length: int, *, mask_tokens: float = 0.0, cleaning: Literal["none", "chinese_clip"] = "none"
) -> CaptionTokenizer:
    """Reads a Hugging Face folder, or a BERT vocabulary file with one token a line.

    `mask_tokens` is the augmentation's probability; if it is not 0, the tokenizer must have a mask token.
    """
    source = Path(path)
    if source.is_file():
        tokenizer, settings = wordpiece(read_vocabulary(source)), {"pad_token": PAD, "mask_token": MASK}
    elif source.is_dir():
        tokenizer, settings = _from_folder(source)
    else:
        raise UserError(
            f"data.tokenizer: {path} is neither a folder with a tokenizer nor a vocabulary file.", code="AT504"
        )
    mask_token = settings.get("mask_token")
    for name in ("pad_token", "mask_token"):
        if not isinstance(settings.get(name), str | None):
            raise UserError(f"data.tokenizer: {path}: {name} is {settings[name]!r}; a token is text.")
    if mask_tokens and (mask_token is None or tokenizer.token_to_id(mask_token) is None):
        raise UserError(
            f"data.augmentation.mask_tokens is {mask_tokens}, but the tokenizer {path} has no mask token. Set it to 0."
        )
    if "pad_token" not in settings:
        raise UserError(f"data.tokenizer: {path} names no pad_token in tokenizer_config.json.", code="AT504")
    inputs = settings.get("model_input_names")
    return CaptionTokenizer(
        tokenizer,
        pad_token=settings["pad_token"],
        mask_token=mask_token,
        uses_mask="attention_mask" in (inputs if isinstance(inputs, list) else ["attention_mask"]),
        max_length=max_length,
        cleaning=cleaning,
    )


def _from_folder(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a Hugging Face folder and its settings, special tokens as plain strings."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= _read_json(folder / name)
    settings = {key: value.get("content") if isinstance(value, dict) else value for key, value in settings.items()}
    settings = {key: value for key, value in settings.items() if value is not None}
    if (folder / "tokenizer.json").is_file():
        return _from_file(folder / "tokenizer.json"), settings
    if (folder / "vocab.txt").is_file():
        tokenizer = wordpiece(read_vocabulary(folder / "vocab.txt"), settings.get("do_lower_case", True))
        return tokenizer, {"pad_token": PAD, "mask_token": MASK} | settings
    return _converted(folder)


def _from_file(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode(TRIAL)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # plain Exception for a damaged file; a panic of the library isn't even that
        raise UserError(f"{path}: not a tokenizer ({error}).") from error
    return tokenizer


def _converted(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """A folder of an older format (merges.txt, spiece.model), converted by transformers."""
    from transformers import AutoTokenizer  # slow to import, and needed for old folders alone

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        backend = loaded.backend_tokenizer
    except (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"data.tokenizer: {folder} holds no tokenizer.json, no vocab.txt, and nothing else that transformers can "
            f"load as a tokenizer ({error})."
        ) from error
    settings = {name: token for name, token in loaded.special_tokens_map.items() if isinstance(token, str)}
    return backend, settings | {"model_input_names": loaded.model_input_names}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__} where settings by name belong.")
    return content


def read_vocabulary(path: Path) -> list[str]:
    """Tokens of a WordPiece vocabulary file in order of their ids. A doubled line would shift every id after it."""
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); a vocabulary file has one token a line.") from error
    tokens = [token.rstrip("\r") for token in tokens]
    if tokens[-1] == "":
        tokens.pop()
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; it is no BERT vocabulary with one token a line.")
    doubled = [token for token, count in Counter(tokens).items() if count > 1]
    if doubled:
        raise UserError(f"{path}: {len(doubled)} tokens come twice, the first is {doubled[0]!r}.")
    return tokens


def wordpiece(tokens: list[str], lowercase: bool = True) -> Tokenizer:
    """BERT's tokenizer: Chinese characters stand alone, other words are cut into the longest known pieces."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK, continuing_subword_prefix="##"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.normalizer = normalizers.BertNormalizer(handle_chinese_chars=True, lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, vocabulary[CLS]), (SEP, vocabulary[SEP])],
    )
    tokenizer.decoder = decoders.WordPiece()
    assert tokenizer.get_vocab_size() == len(tokens)
    return tokenizer


def caption_vocabulary(captions: Iterable[str], vocab_size: int) -> list[str]:
    """A WordPiece vocabulary for some captions, the same on every machine.

    Special tokens, then characters by frequency, at the start of a word and (with ##) inside one, then the most
    frequent whole words. Chinese characters are words of their own. A word that is not in it falls apart into its
    characters. (The trainer of the tokenizers library breaks ties at random, so two imports of one source would differ.)
    """
    normalizer = normalizers.BertNormalizer(handle_chinese_chars=True, lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for caption in captions:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            pieces[character] += count
            if len(word) > 1:  # both forms, so that new words of known letters are known too
                pieces["##" + character] += count
    longer = Counter({word: count for word, count in words.items() if len(word) > 1 and word not in SPECIAL_TOKENS})
    return [*SPECIAL_TOKENS, *_most_frequent(pieces), *_most_frequent(longer)][:vocab_size]


def _most_frequent(counts: Counter[str]) -> list[str]:
    """By falling frequency, then by the alphabet."""
    return sorted(counts, key=lambda token: (-counts[token], token))


def save_tokenizer(tokens: list[str], folder: Path) -> None:
    """Writes a folder that `open_tokenizer` and transformers' AutoTokenizer load alike."""
    folder.mkdir(parents=True)
    wordpiece(tokens).save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in tokens), encoding="utf-8")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    settings: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    settings |= dict(zip(names, SPECIAL_TOKENS, strict=True))
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
