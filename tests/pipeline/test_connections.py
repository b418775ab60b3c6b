"""Connections: TLS that is checked, and a proxy that is never asked for what is private."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.failures import FetchError
from pipeline.network import Network
from pipeline.opener import Reply, SafeOpener
from pipeline.resolver import Address
from schemas.declaration import Fetch
from schemas.state import State
from tests.pipeline.proxy import Proxy, serve_proxy
from tests.pipeline.test_addresses import addresses
from tests.pipeline.web import Web, picture, serve

HERE = {"timeout_seconds": 3.0, "retries": 0, "num_threads": 2}


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve() as running:
        running.bodies["/x"] = picture(1)
        yield running


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with serve_proxy() as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for tls.example, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tls.example")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("tls.example"),
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                ]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@contextmanager
def tls_server(certificate: Path) -> Iterator[tuple[int, list[int]]]:
    """A port that answers 200 under TLS, and how many requests each connection brought."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    counts: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one(plain: socket.socket) -> None:
        place = len(counts)
        counts.append(0)
        try:
            with context.wrap_socket(plain, server_side=True) as secured:
                while secured.recv(4096):
                    counts[place] += 1
                    secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            serving = threading.Thread(target=serve_one, args=(plain,), daemon=True)
            serving.start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    yield listener.getsockname()[1], counts
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    accepting.join()


def everyone_is_here(host: str) -> list[Address]:
    if host.endswith(".gone"):
        raise socket.gaierror(socket.EAI_NONAME, "no such host")
    return addresses("10.0.0.1" if host == "inside.example" else "127.0.0.1")


@contextmanager
def opened(trusted: Path | None = None, **options: object) -> Iterator[SafeOpener]:
    settings = Fetch.model_validate({**HERE, "allow_private_addresses": True, **options})
    network = Network(settings, look_up=everyone_is_here)
    if trusted is not None:
        network.tls.load_verify_locations(trusted)
    opener = SafeOpener(settings, network=network)
    yield opener
    opener.close()
    network.close()


def failure(opener: SafeOpener, url: str) -> FetchError:
    with pytest.raises(FetchError) as caught:
        opener.get(url)
    return caught.value


def test_a_trusted_certificate_opens_and_its_connection_is_reused(certificate: Path) -> None:
    with tls_server(certificate) as (port, counts), opened(certificate) as opener:
        for host in ("tls.example", "tls.example", "tls.example.", "127.0.0.1"):
            assert opener.get(f"https://{host}:{port}/x") == Reply(b"hi", 200, 1)
        assert counts == [2, 1, 1]


def test_an_unknown_or_foreign_certificate_is_final(certificate: Path) -> None:
    with tls_server(certificate) as (port, _), opened() as opener:
        error = failure(opener, f"https://tls.example:{port}/x")
        assert (error.state, error.reason) == (State.CONNECTION_ERROR, "certificate")
        assert not error.is_transient
    with tls_server(certificate) as (port, _), opened(certificate) as opener:
        assert failure(opener, f"https://other.example:{port}/x").reason == "certificate"


def test_a_server_that_speaks_no_tls_is_said_to(web: Web) -> None:
    with opened() as opener:
        error = failure(opener, f"https://127.0.0.1:{web.port}/x")
        assert (error.state, error.reason) == (State.CONNECTION_ERROR, "tls")


def test_a_handshake_that_hangs_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, opened(idle_seconds=0.3) as opener:
        error = failure(opener, f"https://127.0.0.1:{listener.getsockname()[1]}/x")
        assert (error.state, error.reason) == (State.TIMEOUT, "idle")


def test_http_goes_through_the_proxy_by_its_whole_url(web: Web, proxy: Proxy) -> None:
    with opened(proxy=proxy.url) as opener:
        assert opener.get(web.url("/x", host="a.example")).body == picture(1)
    assert proxy.asked == [f"GET http://a.example:{web.port}/x"]
    assert web.hosts["a.example"] == 1


def test_https_goes_through_a_tunnel_and_is_checked_at_its_end(
    certificate: Path, proxy: Proxy
) -> None:
    with tls_server(certificate) as (port, counts), opened(certificate, proxy=proxy.url) as opener:
        for _ in range(3):
            assert opener.get(f"https://tls.example:{port}/x").body == b"hi"
        assert failure(opener, f"https://other.example:{port}/x").reason == "certificate"
        assert counts == [3, 0]
    assert proxy.asked == [f"CONNECT tls.example:{port}", f"CONNECT other.example:{port}"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0x7f.1", "[::1]", "169.254.169.254", "inside.example"]
)
def test_a_proxy_is_not_asked_for_what_is_private(proxy: Proxy, scheme: str, host: str) -> None:
    """Though it is at a private address itself."""
    with opened(proxy=proxy.url, allow_private_addresses=False) as opener:
        error = failure(opener, f"{scheme}://{host}/latest/meta-data")
    assert (error.state, error.reason) == (State.BLOCKED_ADDRESS, "not_public")
    assert proxy.asked == []


def test_a_name_that_only_the_proxy_knows_is_its_affair(web: Web, proxy: Proxy) -> None:
    with opened(proxy=proxy.url, allow_private_addresses=False) as opener:
        assert opener.get(web.url("/x", host="behind.gone")).body == picture(1)


@pytest.mark.parametrize(
    ("scheme", "status", "reason"),
    [
        ("http", 407, "proxy_auth"),
        ("https", 407, "proxy_auth"),
        ("https", 403, "proxy_refused"),
        ("https", 502, "proxy_refused"),
    ],
)
def test_what_a_proxy_refuses_is_told_from_what_a_host_does(
    proxy: Proxy, scheme: str, status: int, reason: str
) -> None:
    proxy.status = status
    with opened(proxy=proxy.url) as opener:
        error = failure(opener, f"{scheme}://a.example/x")
    assert (error.state, error.reason) == (State.CONNECTION_ERROR, reason)
    assert error.http_status == status


def test_a_proxy_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with opened(proxy=f"http://127.0.0.1:{port}") as opener:
        for scheme in ("http", "https"):
            error = failure(opener, f"{scheme}://a.example/x")
            assert (error.state, error.reason) == (State.CONNECTION_ERROR, "proxy_down")
