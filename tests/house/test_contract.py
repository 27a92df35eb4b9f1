"""The contract stays compatible with the normative one that callers elsewhere rely on.

Compared with buf: every message, field name, number, type, label and presence, every enum value and
every rpc of the older side must be in the newer one unchanged. Additions pass.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.rpc import status_pb2

ROOT = Path(__file__).parents[2]
OURS = ROOT / "proto"
NORMATIVE = ROOT.parent / "shared" / "contract"


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("buf")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


def image(protos: Path, workspace: Path) -> Path:
    """Compile `protos` with the one import that is neither ours nor buf's own."""
    shutil.copytree(protos / "unrolled", workspace / "unrolled")
    status = Path(status_pb2.__file__).with_name("status.proto")
    (workspace / "google" / "rpc").mkdir(parents=True)
    shutil.copy(status, workspace / "google" / "rpc")
    built = workspace / "image.binpb"
    result = buf("build", workspace, "--output", built)
    assert result.returncode == 0, result.stderr
    return built


def incompatibilities(newer: Path, older: Path) -> list[str]:
    return buf("breaking", newer, "--against", older).stdout.splitlines()


@pytest.mark.skipif(not NORMATIVE.is_dir(), reason="the normative contract is not beside this tree")
def test_ours_keeps_everything_of_the_normative_contract(tmp_path: Path) -> None:
    ours = image(OURS, tmp_path / "ours")
    normative = image(NORMATIVE, tmp_path / "normative")
    assert incompatibilities(ours, normative) == []


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("completion.proto", "int32 max_tokens = 5;", "int32 limit = 5;"),
        ("completion.proto", "float min_p = 9;", "float min_p = 19;"),
        ("completion.proto", "optional uint64 seed = 10;", "optional int64 seed = 10;"),
        ("completion.proto", "optional int32 logprobs = 12;", "int32 logprobs = 12;"),
        ("completion.proto", "FINISH_REASON_END = 3;", "FINISH_REASON_EOS = 3;"),
        ("completion.proto", "rpc Score(ScoreRequest) returns (ScoreResponse);", ""),
        ("completion.proto", "returns (stream CompleteEvent)", "returns (CompleteEvent)"),
        ("session.proto", "google.protobuf.Duration idle_ttl = 3;", "int64 idle_ttl = 3;"),
        ("error.proto", "ERROR_REASON_FENCED = 16;", ""),
        ("model.proto", "string weights_sha256 = 16;", ""),
    ],
)
def test_an_incompatible_change_is_seen(tmp_path: Path, file: str, before: str, after: str) -> None:
    current = image(OURS, tmp_path / "current")
    changed = tmp_path / "protos"
    shutil.copytree(OURS, changed)
    source = changed / "unrolled" / "v1" / file
    text = source.read_text()
    assert text.count(before) == 1
    source.write_text(text.replace(before, after))
    assert incompatibilities(image(changed, tmp_path / "changed"), current)
