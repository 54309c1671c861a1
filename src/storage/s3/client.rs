//! The connection to one bucket: how it is made, and how a request is tried again.

use std::future::Future;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::super::{Fault, Options};
use super::answer::{Failure, HttpAnswer};
use crate::throttle::Throttle;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Slowest sending that is waited for: bytes a second.
const SLOWEST: u64 = 64 << 10;
/// How often a request is sent at most.
pub(super) const TRIES: u32 = 5;
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// One bucket of one server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) bucket: String,
    pub(super) prefix: String,
    pub(super) shown: String,
    pub(super) options: Options,
    pub(super) throttle: Throttle,
}

impl Server {
    pub(super) fn new(bucket: String, prefix: String, options: Options) -> Result<Self, String> {
        for (name, missing) in
            [("S3_ACCESS_KEY", options.access_key.is_empty()), ("S3_SECRET_KEY", options.secret_key.is_empty())]
        {
            if missing {
                return Err(format!("{name} is not set"));
            }
        }
        let mut trust = TrustStore::default();
        if let Some(file) = &options.ca_file {
            let wrong = |reason: String| format!("S3_CA_FILE {}: {reason}", file.display());
            let text = std::fs::read(file).map_err(|e| wrong(e.to_string()))?;
            // The client would panic on what it cannot read.
            let mut store = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&text) {
                store.add(certificate.map_err(|e| wrong(e.to_string()))?).map_err(|e| wrong(e.to_string()))?;
            }
            if store.is_empty() {
                return Err(wrong("it holds no certificate in PEM form".to_owned()));
            }
            trust = TrustStore::empty().with_pem_certificate(text);
        }
        let tls = TlsContext::builder().with_trust_store(trust).build().map_err(|e| format!("setting up TLS: {e}"))?;
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(tls)
            .build_https();
        let token = options.session_token.as_ref().map(|token| token.expose().to_owned());
        let credentials = Credentials::new(&options.access_key, options.secret_key.expose(), token, None, "settings");
        // Bounds and repetitions are ours (`Server::call`): they differ by what a request does.
        let mut config = aws_sdk_s3::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(options.region.clone()))
            .credentials_provider(credentials)
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .disable_s3_express_session_auth(true)
            .force_path_style(options.path_style.unwrap_or(options.endpoint.is_some() || bucket.contains('.')));
        if let Some(endpoint) = &options.endpoint {
            config = config.endpoint_url(endpoint.as_str());
        }
        let shown = format!("s3://{bucket}/{prefix}");
        let throttle = Throttle::new(options.rate);
        Ok(Server { client: Client::from_conf(config.build()), bucket, prefix, shown, options, throttle })
    }

    /// The key that the server knows.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// How long a request that sends `bytes` may take.
    pub(super) fn limit(&self, bytes: usize) -> Duration {
        self.options.timeout + Duration::from_secs(bytes as u64 / SLOWEST)
    }

    /// The pause before try `tries + 1`.
    pub(super) fn pause(&self, tries: u32) -> Duration {
        self.options.pause.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
    }

    /// Sends a request that may be sent again without harm until it is answered.
    pub(super) async fn call<T, E, F>(
        &self,
        doing: &'static str,
        bytes: usize,
        mut request: impl FnMut() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, SdkError<E, HttpAnswer>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.once(doing, bytes, request()).await {
                Err(failure) if failure.may_pass() && tries < TRIES => {
                    tracing::debug!(bucket = %self.bucket, operation = doing, tries, "{failure}; trying again");
                    tokio::time::sleep(self.pause(tries)).await;
                }
                Err(failure) => return Err(failure.after(tries)),
                Ok(answer) => return Ok(answer),
            }
        }
    }

    /// Sends a request once, for a limited time.
    pub(super) async fn once<T, E>(
        &self,
        doing: &'static str,
        bytes: usize,
        request: impl Future<Output = Result<T, SdkError<E, HttpAnswer>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let limit = self.limit(bytes);
        match tokio::time::timeout(limit, request).await {
            Ok(answer) => answer.map_err(|error| Failure::of(doing, &error)),
            Err(_) => Err(Failure::no_answer(doing, limit)),
        }
    }

    /// What a failure means to the caller.
    pub(super) fn fault(&self, failure: &Failure) -> Fault {
        failure.fault(&self.bucket, &self.options)
    }

    /// An object's description, when there is one.
    pub(super) async fn head(&self, key: &str) -> Result<Option<HeadObjectOutput>, Fault> {
        let head = || self.client.head_object().bucket(&self.bucket).key(key).send();
        match self.call("HeadObject", 0, head).await {
            Ok(found) => Ok(Some(found)),
            Err(failure) if failure.status == Some(404) => Ok(None),
            Err(failure) => Err(self.fault(&failure)),
        }
    }
}
