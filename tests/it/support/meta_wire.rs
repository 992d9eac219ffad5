//! HTTP/1.1 by hand, for a server that has to break its connections at will.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::meta::Reply;

/// A request that was read completely.
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub token: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// A connection, and what was read of it and not yet used.
pub struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The next request; none when the connection ended before all of it had come.
    pub async fn read(&mut self) -> io::Result<Option<Request>> {
        let head_bytes = loop {
            if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await? {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&self.unread[..head_bytes]).into_owned();
        let header = |wanted: &str| {
            let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
            lines
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map_or("", |(_, value)| value.trim())
        };
        assert_eq!(header("transfer-encoding"), "", "the length is announced");
        let length: usize = header("content-length").parse().unwrap_or(0);
        let token = header("authorization").trim_start_matches("Bearer ");
        let mut line = head.split_whitespace();
        let method = line.next().unwrap_or_default();
        let target = line.next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let headers = lines
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        while self.unread.len() < head_bytes + length {
            if !self.more().await? {
                return Ok(None);
            }
        }
        let mut request: Vec<u8> = self.unread.drain(..head_bytes + length).collect();
        Ok(Some(Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            token: token.to_owned(),
            headers,
            body: request.split_off(head_bytes),
        }))
    }

    /// Reads what is there; says whether anything came.
    async fn more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 8 * 1_024];
        let read = self.stream.read(&mut buffer).await?;
        self.unread.extend_from_slice(&buffer[..read]);
        Ok(read > 0)
    }

    /// Sends an answer; the connection goes on.
    pub async fn answer(&mut self, reply: &Reply) -> io::Result<()> {
        self.stream.write_all(&bytes(reply)).await?;
        self.stream.flush().await
    }

    /// Sends an answer without the second half of its body, and ends the connection.
    pub async fn answer_half(mut self, reply: &Reply) -> io::Result<()> {
        let bytes = bytes(reply);
        let half = bytes.len() - reply.body.1.len() / 2;
        self.stream.write_all(&bytes[..half]).await?;
        self.stream.shutdown().await
    }
}

fn bytes(reply: &Reply) -> Vec<u8> {
    let (kind, body) = &reply.body;
    let headers: String = reply
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!(
        "HTTP/1.1 {} Said\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        reply.status,
        body.len()
    )
    .into_bytes()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// Ends a connection so that the other side gets a reset: what is on its way is lost.
pub fn reset(stream: &TcpStream) {
    stream.set_zero_linger().expect("the socket is open");
}

/// Keeps a connection without reading from it, longer than any caller waits.
pub async fn hold(stream: TcpStream) {
    std::future::pending::<()>().await;
    drop(stream);
}
