"""Tokenizers of every common make, trained on a few lines by the libraries themselves."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = (
    "the cat sat on the mat",
    "the dog, it's the dog's!",
    "hello world wörld — naïve",
    "don't do that . ok ?",
)
SPECIAL = ["<s>", "<unk>"]


def _trained(
    model: Any, pre_tokenizer: Any, decoder: Any, trainer: Any, size: int = 120, **options: Any
) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    made = trainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False, **options)
    tokenizer.train_from_iterator(LINES * 5, made)
    return tokenizer


def _byte_level(prefix: bool) -> Tokenizer:
    """As GPT-2's."""
    return _trained(
        models.BPE(),
        pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        decoders.ByteLevel(),
        trainers.BpeTrainer,
        400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def _metaspace(scheme: str) -> Tokenizer:
    pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _trained(models.BPE(unk_token="<unk>"), pre_tokenizer, decoder, trainers.BpeTrainer)


def _unigram() -> Tokenizer:
    return _trained(
        models.Unigram(),
        pre_tokenizers.Metaspace(),
        decoders.Metaspace(),
        trainers.UnigramTrainer,
        unk_token="<unk>",
    )


def _word_piece() -> Tokenizer:
    """As BERT's."""
    return _trained(
        models.WordPiece(unk_token="<unk>"),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
        trainers.WordPieceTrainer,
    )


def _word_level() -> Tokenizer:
    return _trained(
        models.WordLevel(unk_token="<unk>"),
        pre_tokenizers.WhitespaceSplit(),
        None,
        trainers.WordLevelTrainer,
    )


def _suffixes() -> Tokenizer:
    """As the first BPE's: a piece that ends a word says so."""
    return _trained(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
        pre_tokenizers.WhitespaceSplit(),
        decoders.BPEDecoder(),
        trainers.BpeTrainer,
        end_of_word_suffix="</w>",
    )


def _byte_fallback() -> Tokenizer:
    """As those converted from SentencePiece, of which Llama's is one."""
    letters = sorted({*"".join(LINES), "▁"} - {" ", "ö"})
    pairs = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    spelled = [*SPECIAL, *(f"<0x{value:02X}>" for value in range(256)), *letters]
    spelled += ["".join(pair) for pair in pairs]
    ids = {token: index for index, token in enumerate(spelled)}
    model = models.BPE(vocab=ids, merges=pairs, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


TOKENIZERS = {
    "byte-level": lambda: _byte_level(False),
    "byte-level-prefix": lambda: _byte_level(True),
    "metaspace": lambda: _metaspace("always"),
    "metaspace-first": lambda: _metaspace("first"),
    "metaspace-never": lambda: _metaspace("never"),
    "unigram": _unigram,
    "byte-fallback": _byte_fallback,
    "word-piece": _word_piece,
    "word-level": _word_level,
    "suffixes": _suffixes,
}


@cache
def tokenizer(name: str) -> Tokenizer:
    """One of TOKENIZERS. Not to be changed."""
    return TOKENIZERS[name]()


SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "bpe": {},
    "no-prefix": {"add_dummy_prefix": False},
    "spaces": {"remove_extra_whitespaces": False},
    "no-prefix-spaces": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "unigram": {"model_type": "unigram", "byte_fallback": False, "vocab_size": 60},
    "suffix": {"treat_whitespace_as_suffix": True},
}


@cache
def sentencepiece_model(name: str) -> bytes:
    """A model with the options of SENTENCEPIECE."""
    usual = {"vocab_size": 340, "model_type": "bpe", "byte_fallback": True}
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 5),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        user_defined_symbols=["<sep>"],
        **{**usual, **SENTENCEPIECE[name]},
    )
    return model.getvalue()


def processor(model: bytes) -> SentencePieceProcessor:
    """The library's own reading of a model."""
    return SentencePieceProcessor(model_proto=model)
