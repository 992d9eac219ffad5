//! TLS of the requests that we make: the roots are in the binary, so that no certificates need to
//! be installed.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// What a client trusts, and how it speaks; it proves nothing of itself.
///
/// # Errors
/// When the provider of ciphers knows none of the protocol's versions.
pub fn client_config() -> Result<ClientConfig, rustls::Error> {
    let roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
