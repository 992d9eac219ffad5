//! Requests as bytes, for clients that behave badly.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::load::Target;

/// A whole POST of JSON to a path under the store.
pub fn post(target: &Target, rest: &str, body: &str) -> Vec<u8> {
    let length = format!("content-length: {}\r\n", body.len());
    let mut bytes = head(
        target,
        rest,
        &format!("content-type: application/json\r\n{length}"),
    );
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

/// The head of a POST of a stream of lines, each to be sent with [`chunk`].
pub fn stream_head(target: &Target, rest: &str) -> Vec<u8> {
    let of_a_stream = "content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n";
    head(target, rest, of_a_stream)
}

fn head(target: &Target, rest: &str, more: &str) -> Vec<u8> {
    let Target { store_id, key, .. } = target;
    format!(
        "POST /api/v1/stores/{store_id}/{rest} HTTP/1.1\r\nhost: keyfold\r\n\
         authorization: Bearer {key}\r\n{more}\r\n"
    )
    .into_bytes()
}

/// A piece of a stream.
pub fn chunk(text: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{:x}\r\n", text.len()).into_bytes();
    bytes.extend_from_slice(text);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// The end of a stream.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A connection to the service.
pub async fn connect(target: &Target) -> TcpStream {
    let address = target.base.trim_start_matches("http://");
    TcpStream::connect(address)
        .await
        .expect("the service listens")
}

/// Connects and sends; the answer is never read.
pub async fn send(target: &Target, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(target).await;
    stream.write_all(bytes).await.expect("it is taken");
    stream
}

/// Reads until this text came; gives everything that was read.
pub async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
    {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.expect("it is still open");
        assert!(
            read > 0,
            "it ended with {}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
