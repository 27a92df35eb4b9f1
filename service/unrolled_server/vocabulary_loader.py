"""Makes the vocabulary that a manifest describes, of tokens it lists or a file it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unrolled.v1 import model_pb2

from unrolled_server.listed_vocabularies import ByteVocabulary, GroupVocabulary, WordVocabulary
from unrolled_server.vocabulary import CharacterVocabulary, Vocabulary

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"


class VocabularyError(Exception):
    """A vocabulary that cannot be served; the message names the file and field."""


def load_vocabulary(folder: Path, manifest: model_pb2.Model) -> Vocabulary:
    """The vocabulary of the model in `folder`, whose files have been checked.

    Raises VocabularyError.
    """
    kinds = {
        model_pb2.Vocabulary.KIND_CHARACTER: _characters,
        model_pb2.Vocabulary.KIND_BYTE: _bytes,
        model_pb2.Vocabulary.KIND_WORD: _words,
        model_pb2.Vocabulary.KIND_TOKENIZER: lambda _: _tokenizer(folder, manifest),
        model_pb2.Vocabulary.KIND_SENTENCEPIECE: lambda _: _sentencepiece(folder, manifest),
    }
    message = manifest.vocabulary
    make: Callable[[model_pb2.Vocabulary], Vocabulary] | None = kinds.get(message.kind)
    if make is None:
        raise VocabularyError(
            f"manifest.json: vocabulary.kind: {_name(message)} is not served by this release"
        )
    vocabulary = make(message)
    _check_ids(message, vocabulary.size)
    return vocabulary


def _name(message: model_pb2.Vocabulary) -> str:
    if message.kind in model_pb2.Vocabulary.Kind.values():
        return model_pb2.Vocabulary.Kind.Name(message.kind)
    return str(message.kind)


def _check_ids(message: model_pb2.Vocabulary, size: int) -> None:
    special = {"start_token": message.start_token, "unknown_token": message.unknown_token}
    for field, token in special.items():
        if not 0 <= token < size:
            raise VocabularyError(f"manifest.json: vocabulary.{field}: there is no token {token}")
    if not all(0 <= token < size for token in message.end_tokens):
        raise VocabularyError("manifest.json: vocabulary.end_tokens: not all are tokens")


def _start(message: model_pb2.Vocabulary) -> int | None:
    return message.start_token if message.HasField("start_token") else None


def _unknown(message: model_pb2.Vocabulary) -> int | None:
    """Raises VocabularyError where it is no token, which encoding could not do without."""
    _check_ids(message, len(message.tokens))
    return message.unknown_token if message.HasField("unknown_token") else None


def _characters(message: model_pb2.Vocabulary) -> Vocabulary:
    unknown = _unknown(message)
    try:
        groups = any(len(token.decode()) != 1 for token in message.tokens)
        make = GroupVocabulary if groups else CharacterVocabulary
        return make(message.tokens, _start(message), message.end_tokens, unknown)
    except (LookupError, ValueError) as error:
        raise VocabularyError("manifest.json: vocabulary.tokens: not all characters") from error


def _bytes(message: model_pb2.Vocabulary) -> Vocabulary:
    unknown = _unknown(message)
    if not message.tokens:
        raise VocabularyError("manifest.json: vocabulary.tokens: there are none")
    return ByteVocabulary(message.tokens, _start(message), message.end_tokens, unknown)


def _words(message: model_pb2.Vocabulary) -> Vocabulary:
    if not message.joiner:
        raise VocabularyError("manifest.json: vocabulary.joiner: KIND_WORD needs one")
    unknown = _unknown(message)
    try:
        return WordVocabulary(
            message.tokens, _start(message), message.end_tokens, unknown, message.joiner
        )
    except ValueError as error:
        raise VocabularyError("manifest.json: vocabulary.tokens: not all words") from error


def _tokenizer(folder: Path, manifest: model_pb2.Model) -> Vocabulary:
    content = _content(folder, manifest, TOKENIZER_FILE)
    try:
        # Loaded for the models that need it: it is not part of every installation.
        from unrolled_server.tokenizer_json import TokenizerVocabulary
    except ModuleNotFoundError as error:
        raise _missing(TOKENIZER_FILE, error) from error
    message = manifest.vocabulary
    try:
        found = TokenizerVocabulary(content.decode(), _start(message), message.end_tokens)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{TOKENIZER_FILE}: {error}") from error
    return _of_size(found, message, TOKENIZER_FILE)


def _sentencepiece(folder: Path, manifest: model_pb2.Model) -> Vocabulary:
    content = _content(folder, manifest, SENTENCEPIECE_FILE)
    try:
        # As above.
        from unrolled_server.sentencepiece_model import SentencePieceVocabulary
    except ModuleNotFoundError as error:
        raise _missing(SENTENCEPIECE_FILE, error) from error
    message = manifest.vocabulary
    try:
        found = SentencePieceVocabulary(content, _start(message), message.end_tokens)
    except ValueError as error:
        raise VocabularyError(f"{SENTENCEPIECE_FILE}: {error}") from error
    return _of_size(found, message, SENTENCEPIECE_FILE)


def _content(folder: Path, manifest: model_pb2.Model, name: str) -> bytes:
    """A file whose checksum has been checked: one that the manifest names."""
    if name not in {file.name for file in manifest.files}:
        raise VocabularyError(f"manifest.json: files: {name} is not listed")
    return (folder / name).read_bytes()


def _missing(file: str, error: ModuleNotFoundError) -> VocabularyError:
    return VocabularyError(f"{file}: needs {error.name}: pip install 'unrolled[tokenizers]'")


def _of_size(found: Vocabulary, message: model_pb2.Vocabulary, file: str) -> Vocabulary:
    if found.size != message.size:
        raise VocabularyError(
            f"{file}: {found.size} tokens, but vocabulary.size in manifest.json is {message.size}"
        )
    return found
