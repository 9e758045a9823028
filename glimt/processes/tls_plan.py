"""What the flags of the certificate come to."""

from glimt.config import ServerSettings
from glimt.processes.tls import TlsContext, TlsFiles


def tls_files(server: ServerSettings) -> TlsFiles | None:
    """What the flags say of TLS, tried once. Raises BadSettings."""
    if server.ssl_certfile is None:
        return None
    files = TlsFiles(
        certfile=server.ssl_certfile,
        keyfile=server.ssl_keyfile,
        ca_certs=server.ssl_ca_certs,
        cert_reqs=server.ssl_cert_reqs,
        ciphers=server.ssl_ciphers,
        refresh=server.enable_ssl_refresh,
    )
    TlsContext(files)
    return files
