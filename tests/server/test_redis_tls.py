"""Redis over TLS: who is trusted, what is shown, and what goes wrong in clear words and in time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from support.calls import SECONDS, Stubs, refusal_of
from support.lone import LoneSession
from support.metrics import eventually
from support.models import Repository
from support.redis import RunningRedis, running_redis
from support.stored import serving
from support.tls import Files, expired, local, written
from unrolled.v1.completion_pb2 import CompleteRequest
from unrolled_server.errors import StoreUnavailable
from unrolled_server.files import FileError
from unrolled_server.redis_store import RedisStore
from unrolled_server.redis_tls import context_recipe
from unrolled_server.redis_url import TlsOptions, tls_options
from unrolled_server.session_names import ID_BYTES
from unrolled_server.store import StoreOpenError

TIMEOUT = 5.0
BOUND = 4 * TIMEOUT
"""Seconds that nothing takes which has TIMEOUT, however busy the machine."""
USER, PASSWORD = "unrolled", "p/a?s#s@w%o:r[d]&"
NOBODYS = bytes(ID_BYTES)
"""A session that there is not."""


@dataclass(frozen=True)
class Authorities:
    """Two authorities, and the files with what they have signed."""

    folder: Path
    ours: trustme.CA
    theirs: trustme.CA

    @property
    def our_file(self) -> Path:
        return self.folder / "ours.pem"

    @property
    def their_file(self) -> Path:
        return self.folder / "theirs.pem"

    def shown(self, ca: trustme.CA) -> dict[str, object]:
        """Options of a URL by which a certificate of this authority is shown."""
        name = "our-client" if ca is self.ours else "their-client"
        files = written(self.folder, name, ca.issue_cert("unrolled@example.com"))
        return {"ssl_certfile": files.cert, "ssl_keyfile": files.key}


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    both = Authorities(tmp_path_factory.mktemp("authorities"), trustme.CA(), trustme.CA())
    both.ours.cert_pem.write_to_path(both.our_file)
    both.theirs.cert_pem.write_to_path(both.their_file)
    return both


@dataclass(frozen=True)
class SecureRedis:
    """A Redis server that speaks TLS, and what it is reached with."""

    redis: RunningRedis
    port: int
    authorities: Authorities
    files: Files

    def url(self, host: str = "127.0.0.1", /, **options: object) -> str:
        """What --store takes; trusts our authority, where options do not say otherwise."""
        if not options.keys() & {"ssl_ca_certs", "ssl_cert_reqs"}:
            options["ssl_ca_certs"] = self.authorities.our_file
        return self.bare_url(host) + "?" + urlencode(options, safe="/")

    def bare_url(self, host: str = "127.0.0.1", /) -> str:
        """The same without options."""
        return f"rediss://{USER}:{quote(PASSWORD, safe='')}@{host}:{self.port}/0"

    def start(self) -> None:
        """Start it again, as it was."""
        self.redis.start()
        self.redis.listen_with_tls(self.files, self.authorities.our_file, port=self.port)
        add_user(self.redis)


@contextmanager
def speaking_tls(
    folder: Path, authorities: Authorities, issued: trustme.LeafCert, *, wants_clients: bool = False
) -> Iterator[SecureRedis]:
    """A Redis server that shows this certificate."""
    files = written(folder, "redis", issued)
    with running_redis(folder, "--appendonly", "yes", "--appendfsync", "always") as redis:
        port = redis.listen_with_tls(files, authorities.our_file, wants_clients=wants_clients)
        add_user(redis)
        yield SecureRedis(redis, port, authorities, files)


def add_user(redis: RunningRedis) -> None:
    """Add the user of the URLs, who has no business with other keys than ours."""
    with redis.client() as client:
        client.acl_setuser(
            USER,
            enabled=True,
            passwords=[f"+{PASSWORD}"],
            keys=["unrolled:*"],
            channels=["*"],
            categories=["+@all"],
        )


@pytest.fixture
def secure(authorities: Authorities, tmp_path: Path) -> Iterator[SecureRedis]:
    """One whose certificate is good."""
    with speaking_tls(tmp_path, authorities, local(authorities.ours)) as secure:
        yield secure


@pytest.fixture
def guarded(authorities: Authorities, tmp_path: Path) -> Iterator[SecureRedis]:
    """One that wants a certificate of ours as well."""
    issued = local(authorities.ours)
    with speaking_tls(tmp_path, authorities, issued, wants_clients=True) as secure:
        yield secure


@asynccontextmanager
async def opened(url: str, seconds: float = TIMEOUT) -> AsyncIterator[RedisStore]:
    """The store at this URL, with TLS as the server has it."""
    options = tls_options(url)
    context = None if options is None else context_recipe(options).read().value
    store = RedisStore(url, seconds, tls=None if context is None else lambda: context)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def why_not(url: str) -> str:
    """What is said where a store cannot be opened, which it has to be soon."""
    began = time.monotonic()
    with pytest.raises(StoreOpenError) as caught:
        async with opened(url):
            pass
    assert time.monotonic() - began < BOUND
    said = str(caught.value)
    assert PASSWORD not in said
    assert quote(PASSWORD, safe="") not in said
    return said


# Sessions


@pytest.mark.parametrize("wants_clients", [False, True])
def test_a_session_outlives_its_server(
    repository: Repository, authorities: Authorities, tmp_path: Path, wants_clients: bool
) -> None:
    issued = local(authorities.ours)
    shown = authorities.shown(authorities.ours) if wants_clients else {}
    with speaking_tls(tmp_path, authorities, issued, wants_clients=wants_clients) as secure:
        url, lone = secure.url(**shown), LoneSession(repository, "lstm", 3)
        with serving(repository.path, url) as first:
            name = first.stubs.create("lstm", seed=3)
            lone.tell("ab")
            assert turn(first.stubs, name, "ab") == lone.draw(4)
            assert whose_connections(secure) == {USER}
            first.kill()
        with serving(repository.path, url) as second:
            assert second.stubs.position(name) == lone.position
            lone.tell("c")
            assert turn(second.stubs, name, "c") == lone.draw(4)


def turn(stubs: Stubs, session: str, prompt: str) -> str:
    request = CompleteRequest(session=session, prompt=prompt, max_tokens=4)
    return stubs.completions.Complete(request, timeout=SECONDS).text


def whose_connections(secure: SecureRedis) -> set[str]:
    """Users of the connections over TCP."""
    with secure.redis.client() as client:
        return {each["user"] for each in client.client_list() if "U" not in each["flags"]}


def test_files_are_read_again_when_they_change(
    repository: Repository, authorities: Authorities, secure: SecureRedis, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authorities.our_file.read_bytes())
    with serving(repository.path, secure.url(ssl_ca_certs=trusted)) as here:
        name = here.stubs.create("lstm", seed=3)
        changes = "unrolled_file_reloads_total"
        trusted.write_text("rubbish")
        here.metrics.wait_for(changes, 1, files="store_tls", result="bad")
        end_connections(secure)
        eventually(lambda: is_there(here.stubs, name), "a connection by the last good file")
        trusted.write_bytes(authorities.their_file.read_bytes())
        here.metrics.wait_for(changes, 1, files="store_tls", result="good")
        secure.files.write(local(authorities.theirs))
        secure.redis.listen_with_tls(secure.files, authorities.our_file, port=secure.port)
        end_connections(secure)
        eventually(lambda: is_there(here.stubs, name), "a connection by the new file")


def end_connections(secure: SecureRedis) -> None:
    """All that stand, so that others have to be made."""
    with secure.redis.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)


def is_there(stubs: Stubs, session: str) -> bool:
    """Whether a session is found; a connection's end may not have been noticed yet."""
    try:
        return stubs.position(session) == 0
    except grpc.RpcError as error:
        if refusal_of(error).reason != "STORE_UNAVAILABLE":
            raise
        return False


# Who is trusted


async def test_whom_the_system_trusts_is_trusted_unless_a_file_says_whom(
    secure: SecureRedis, authorities: Authorities, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not trusted" in await why_not(secure.bare_url())
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities.our_file))
    async with opened(secure.bare_url()) as store:
        assert await store.ping()
    said = await why_not(secure.url(ssl_ca_certs=authorities.their_file))
    assert "its certificate is not trusted: " in said
    assert "ssl_ca_certs says whom to trust" in said


async def test_an_authority_may_have_a_name_that_is_not_ascii(
    secure: SecureRedis, authorities: Authorities, tmp_path: Path
) -> None:
    file = tmp_path / "commented.pem"
    file.write_bytes("# Főtanúsítvány\n".encode() + authorities.our_file.read_bytes())
    async with opened(secure.url(ssl_ca_certs=file)) as store:
        assert await store.ping()


async def test_a_certificate_that_has_expired_is_not_trusted(
    authorities: Authorities, tmp_path: Path
) -> None:
    with speaking_tls(tmp_path, authorities, expired(authorities.ours)) as late:
        said = await why_not(late.url())
    assert "its certificate is not trusted: certificate has expired" in said


async def test_a_certificate_of_another_host_is_refused(
    secure: SecureRedis, authorities: Authorities, tmp_path: Path
) -> None:
    with speaking_tls(tmp_path, authorities, authorities.ours.issue_cert("elsewhere.com")) as other:
        for host in ("127.0.0.1", "localhost"):
            said = await why_not(other.url(host))
            assert "its certificate is for another host: " in said
            assert f"not valid for '{host}'" in said


@pytest.mark.parametrize(
    ("issuer", "options", "unverified"),
    [
        ("ours", {}, None),
        ("ours", {"ssl_check_hostname": "False"}, "host name"),
        ("theirs", {"ssl_cert_reqs": "none"}, "certificate"),
    ],
)
async def test_what_is_not_verified_is_warned_of(
    authorities: Authorities,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    issuer: str,
    options: dict[str, object],
    unverified: str | None,
) -> None:
    issued = getattr(authorities, issuer).issue_cert("localhost" if not options else "else.where")
    with speaking_tls(tmp_path, authorities, issued) as redis:
        async with opened(redis.url("localhost", **options)) as store:
            assert await store.ping()
    warnings = [r for r in caplog.records if r.getMessage() == "store_not_verified"]
    assert [getattr(r, "fields", None) for r in warnings] == (
        [] if unverified is None else [{"unverified": unverified}]
    )


async def test_a_host_name_that_is_not_checked_does_not_make_anybody_trusted(
    authorities: Authorities, tmp_path: Path
) -> None:
    with speaking_tls(tmp_path, authorities, local(authorities.theirs)) as redis:
        assert "is not trusted" in await why_not(redis.url(ssl_check_hostname="false"))


# What is not as it is taken for


async def test_a_redis_without_tls_behind_rediss_is_refused(secure: SecureRedis) -> None:
    plain = SecureRedis(secure.redis, secure.redis.listen(), secure.authorities, secure.files)
    said = await why_not(plain.url())
    assert "TLS was not agreed on: " in said
    assert "redis:// is for Redis without TLS" in said


async def test_a_redis_with_tls_behind_plain_redis_is_refused(secure: SecureRedis) -> None:
    said = await why_not(secure.bare_url().replace("rediss:", "redis:"))
    assert "it may want TLS, which is rediss://" in said


async def test_a_redis_that_wants_a_certificate_says_so(
    guarded: SecureRedis, authorities: Authorities
) -> None:
    for shown in ({}, authorities.shown(authorities.theirs)):
        assert "it may want a certificate" in await why_not(guarded.url(**shown))
    async with opened(guarded.url(**authorities.shown(authorities.ours))) as store:
        assert await store.ping()


def test_a_server_says_in_one_line_why_it_does_not_start(
    repository: Repository, secure: SecureRedis, authorities: Authorities, tmp_path: Path
) -> None:
    """And the password is not in it."""
    missing = tmp_path / "missing.pem"
    shown = f"--store rediss://{USER}:***@127.0.0.1:{secure.port}/0?ssl_ca_certs="
    theirs = authorities.their_file
    for url, said in (
        (secure.url(ssl_ca_certs=missing), f"--store ssl_ca_certs {missing}: No such file or dir"),
        (secure.url(ssl_ca_certs=theirs), f"{shown}{theirs}: its certificate is not trusted: "),
        (secure.url().replace(f"//{USER}:", f"//{USER}:x"), f"{shown}{authorities.our_file}: inva"),
        (secure.bare_url().replace("%2F", "/"), f"--store rediss://{USER}:***@127.0.0.1:"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "unrolled_server", "--models", repository.path, "--port", "0",
             "--metrics-port", "0", "--store", url],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )  # fmt: skip
        *log, line = ended.stderr.splitlines()
        assert ended.returncode in (1, 2)
        assert line.startswith(f"unrolled-server: {said}")
        assert all(" event=" in each for each in log)
        for secret in (PASSWORD, quote(PASSWORD, safe=""), PASSWORD.partition("/")[2]):
            assert secret not in ended.stderr


# Files


@pytest.mark.parametrize(
    ("fault", "option", "problem"),
    [
        ("no file", "ssl_ca_certs", "No such file or directory"),
        ("no file", "ssl_certfile", "No such file or directory"),
        ("no file", "ssl_keyfile", "No such file or directory"),
        ("a folder", "ssl_ca_certs", "is not a regular file"),
        ("rubbish", "ssl_ca_certs", "is not one or more certificates in PEM"),
        ("rubbish", "ssl_certfile", "is not one or more certificates in PEM"),
        ("rubbish", "ssl_keyfile", "is not a private key in PEM"),
        ("another key", "ssl_keyfile", "is not the key of the first certificate in the file of"
                                       " --store ssl_certfile"),
        ("a passphrase", "ssl_keyfile", "the key is encrypted"),
        ("expired", "ssl_certfile", "the certificate has expired on"),
    ],
)  # fmt: skip
def test_files_that_are_of_no_use_are_named(
    authorities: Authorities, tmp_path: Path, fault: str, option: str, problem: str
) -> None:
    shown = written(tmp_path, "client", authorities.ours.issue_cert("unrolled@example.com"))
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(authorities.our_file.read_bytes())
    files = {"ssl_ca_certs": trusted, "ssl_certfile": shown.cert, "ssl_keyfile": shown.key}
    spoil(files[option], authorities, fault)
    with pytest.raises(FileError) as caught:
        context_recipe(TlsOptions(files)).read()
    assert str(caught.value).startswith(f"--store {option} {files[option]}: {problem}")


def spoil(file: Path, authorities: Authorities, fault: str) -> None:
    """Do something to the file that makes it of no use."""
    if fault in ("no file", "a folder"):
        file.unlink()
    if fault == "a folder":
        file.mkdir()
    elif fault == "rubbish":
        file.write_text("rubbish")
    elif fault == "another key":
        file.write_bytes(local(authorities.ours).private_key_pem.bytes())
    elif fault == "expired":
        file.write_bytes(expired(authorities.ours).cert_chain_pems[0].bytes())
    elif fault == "a passphrase":
        key = load_pem_private_key(file.read_bytes(), None)
        locked = BestAvailableEncryption(b"secret")
        file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))


# Outages


async def test_a_redis_that_is_gone_is_unavailable_and_comes_back(secure: SecureRedis) -> None:
    async with opened(secure.url(), seconds=30.0) as store:
        await asyncio.gather(*(store.read(NOBODYS, "default") for _ in range(20)))
        secure.redis.end()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.read(NOBODYS, "default")
        assert not await store.ping()
        secure.start()
        # Every one of them, over connections that were closed meanwhile.
        reading = (store.read(NOBODYS, "default") for _ in range(20))
        assert await asyncio.gather(*reading) == [None] * 20


async def test_a_redis_that_stands_still_holds_nothing_up(secure: SecureRedis) -> None:
    """Neither calls nor the store's end, whether connections stand or are to be made."""
    async with opened(secure.url(), seconds=30.0) as patient:
        began = time.monotonic()
        async with opened(secure.url()) as store:
            secure.redis.stop()
            reading = (store.read(NOBODYS, "default") for _ in range(20))
            answers = await asyncio.gather(*reading, return_exceptions=True)
            assert {type(answer) for answer in answers} == {StoreUnavailable}
            assert not await store.ping()
        assert time.monotonic() - began < 2 * BOUND
        secure.redis.go_on()
        assert await patient.read(NOBODYS, "default") is None


def test_a_server_ends_while_redis_stands_still(
    repository: Repository, secure: SecureRedis
) -> None:
    with serving(repository.path, secure.url(), "--store-timeout", "5s") as here:
        here.stubs.create("lstm", seed=3)
        secure.redis.stop()
        status, log = here.server.terminate()
    assert status == 0
    assert "event=stopped" in log
    assert "Traceback" not in log
