"""gRPC credentials from a service's TLS files: mutual, of our own CA alone, following renewed files."""

from __future__ import annotations

import grpc

from services.common.tls import TlsFiles, TlsMaterial


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Server credentials that demand a client certificate of our CA and follow renewed files."""
    material = files.read()
    state = [material]

    def config(current: TlsMaterial) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(current.key, current.certificate)], current.ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called on every handshake; half-renewed or unreadable files keep the old certificate.
        try:
            current = files.read()
        except (OSError, ValueError):
            return None
        if current == state[0]:
            return None
        state[0] = current
        return config(current)

    # The stubs do not know that None means no change, as grpc documents.
    return grpc.dynamic_ssl_server_credentials(
        config(material),
        fetch,  # type: ignore[arg-type]
        require_client_authentication=True,
    )


def channel_credentials(material: TlsMaterial) -> grpc.ChannelCredentials:
    """Client credentials with this certificate, trusting our CA alone."""
    return grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
