"""What a fingerprint cannot be made of."""

from __future__ import annotations

import pytest
from unrolled.fingerprint import fingerprint
from unrolled.v1.model_pb2 import Model, Vocabulary


def test_a_model_of_a_long_list_has_no_fingerprint_to_be_computed() -> None:
    vocabulary = Vocabulary(kind=Vocabulary.KIND_WORD, size=2, tokens=[b"a", b"b"])
    model = Model(name="words", vocabulary=vocabulary)
    assert len(fingerprint(model)) == 64
    del model.vocabulary.tokens[:]
    with pytest.raises(ValueError, match="words: without its vocabulary's tokens"):
        fingerprint(model)
