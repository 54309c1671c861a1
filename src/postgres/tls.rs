//! TLS to a PostgreSQL server, in libpq's modes, by rustls with ring.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// libpq's `sslmode` (PostgreSQL documentation, "SSL Mode Descriptions").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mode {
    kind: Kind,
    root: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    /// Reads `sslmode` (default `prefer`, as libpq) and `sslrootcert`.
    ///
    /// # Errors
    /// When the mode is none of libpq's.
    pub fn parse(mode: Option<&str>, root: Option<&str>) -> Result<Self, String> {
        let kind = match mode.unwrap_or("prefer") {
            "disable" | "false" => Kind::Disable,
            "allow" | "prefer" => Kind::Prefer,
            "require" | "true" => Kind::Require,
            "verify-ca" => Kind::VerifyCa,
            "verify-full" => Kind::VerifyFull,
            other => {
                return Err(format!("sslmode `{other}` is none of disable, allow, prefer, require, verify-ca, verify-full"));
            }
        };
        Ok(Mode { kind, root: root.map(str::to_owned) })
    }

    pub(super) fn wire_mode(&self) -> SslMode {
        match self.kind {
            Kind::Disable => SslMode::Disable,
            Kind::Prefer => SslMode::Prefer,
            Kind::Require | Kind::VerifyCa | Kind::VerifyFull => SslMode::Require,
        }
    }

    pub(super) fn libpq_mode(&self) -> &'static str {
        match self.kind {
            Kind::Disable => "disable",
            Kind::Prefer => "prefer",
            Kind::Require => "require",
            Kind::VerifyCa => "verify-ca",
            Kind::VerifyFull => "verify-full",
        }
    }

    pub(super) fn root_certificate(&self) -> Option<&str> {
        self.root.as_deref()
    }

    pub(super) fn connector(&self) -> Result<MakeRustlsConnect, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("setting up TLS: {e}"))?;
        let config = match self.kind {
            // As libpq: these modes encrypt, and verify nothing unless told by `verify-…`.
            Kind::Disable | Kind::Prefer | Kind::Require => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))).with_no_client_auth()
            }
            Kind::VerifyCa | Kind::VerifyFull => builder.with_root_certificates(self.roots()?).with_no_client_auth(),
        };
        Ok(MakeRustlsConnect::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut store = RootCertStore::empty();
        match self.root.as_deref() {
            Some(path) if path != "system" => {
                let certificates =
                    CertificateDer::pem_file_iter(path).map_err(|e| format!("reading sslrootcert `{path}`: {e}"))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|e| format!("reading sslrootcert `{path}`: {e}"))?;
                    store.add(certificate).map_err(|e| format!("reading sslrootcert `{path}`: {e}"))?;
                }
            }
            _ => {
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if store.is_empty() {
            return Err("no root certificate found; give one with sslrootcert=/path/to/ca.pem".to_owned());
        }
        Ok(store)
    }
}

/// Accepts every certificate, but checks that the peer holds its key.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
