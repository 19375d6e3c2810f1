"""Certificates for tests: an issuer, what it issues, and who reads it."""

import datetime
import socket
import ssl

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def pem_of_key(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class Issuer:
    def __init__(self, name="tests"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key.public_key(), -1, 365, x509.BasicConstraints(ca=True, path_length=0))
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(self, subject, public_key, first_day, last_day, *extensions):
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(public_key)
                   .serial_number(x509.random_serial_number()).not_valid_before(now + datetime.timedelta(days=first_day))
                   .not_valid_after(now + datetime.timedelta(days=last_day)))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, *names, days=30, first_day=-1):
        """(certificate, key) in PEM for DNS names and URIs."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name) for name in names]
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "subject")]), key.public_key(), first_day,
                                 days, x509.SubjectAlternativeName(alternatives))
        return certificate.public_bytes(serialization.Encoding.PEM), pem_of_key(key)


def secure(issuer, certificate=None):
    """Credentials of a client that trusts the issuer."""
    chain, key = certificate or (None, None)
    return grpc.ssl_channel_credentials(issuer.pem, key, chain)


def serial_of(server, issuer):
    """The number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cadata=issuer.pem.decode())
    context.set_alpn_protocols(["h2"])
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        with context.wrap_socket(connection, server_hostname="localhost") as wrapped:
            return wrapped.getpeercert()["serialNumber"]
