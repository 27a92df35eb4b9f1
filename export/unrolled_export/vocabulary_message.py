"""A vocabulary as the manifest has it."""

from __future__ import annotations

from unrolled.v1 import model_pb2

from unrolled_export.vocabulary import Kind, Vocabulary

_KINDS = {
    Kind.CHARACTER: model_pb2.Vocabulary.KIND_CHARACTER,
    Kind.BYTE: model_pb2.Vocabulary.KIND_BYTE,
    Kind.WORD: model_pb2.Vocabulary.KIND_WORD,
    Kind.TOKENIZER: model_pb2.Vocabulary.KIND_TOKENIZER,
    Kind.SENTENCEPIECE: model_pb2.Vocabulary.KIND_SENTENCEPIECE,
}


def vocabulary_message(vocabulary: Vocabulary) -> model_pb2.Vocabulary:
    """The message of the contract."""
    return model_pb2.Vocabulary(
        kind=_KINDS[vocabulary.kind],
        size=vocabulary.size,
        tokens=vocabulary.tokens,
        start_token=vocabulary.start,
        end_tokens=vocabulary.end,
        unknown_token=vocabulary.unknown,
        joiner=vocabulary.joiner,
    )
