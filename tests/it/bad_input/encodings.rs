//! Bodies that are packed for the way.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};

use super::case::{Case, Want, example, request};
use super::transport::{JSON, POST};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

pub fn cases() -> Vec<Case> {
    let order = example("orders").to_string().into_bytes();
    let packed = gzip(&order);
    let (first, second) = order.split_at(order.len() / 2);
    let two_members = [gzip(first), gzip(second)].concat();
    let mut wrong_sum = packed.clone();
    let at = wrong_sum.len() - 5;
    wrong_sum[at] ^= 1;
    let bomb = gzip(&vec![b' '; 64 * 1024 * 1024]);
    let padded = [order.clone(), vec![b' '; 1024 * 1024 - order.len()]].concat();
    let one_more = [padded.as_slice(), b" "].concat();
    let unreadable = || Want::refused(400, "body_unreadable");
    let large = || Want::refused(413, "body_too_large");
    let unsupported = || Want::refused(415, "unsupported_content_encoding");
    type Row<'a> = (&'a str, &'a [(&'a str, &'a [u8])], &'a [u8], Want);
    let g: (&str, &[u8]) = ("Content-Encoding", b"gzip");
    let rows: [Row; 20] = [
        ("gzip", &[g], &packed, Want::taken(200)),
        (
            "GZIP",
            &[("Content-Encoding", b"GZIP")],
            &packed,
            Want::taken(200),
        ),
        (
            "identity",
            &[("Content-Encoding", b"identity")],
            &order,
            Want::taken(200),
        ),
        ("gzip in two members", &[g], &two_members, Want::taken(200)),
        ("gzip of 1 MiB", &[g], &gzip(&padded), Want::taken(200)),
        (
            "gzip of 1 MiB and one byte",
            &[g],
            &gzip(&one_more),
            large(),
        ),
        ("a gzip bomb", &[g], &bomb, large()),
        (
            "gzip cut in the middle",
            &[g],
            &packed[..packed.len() / 2],
            unreadable(),
        ),
        (
            "gzip without its end",
            &[g],
            &packed[..packed.len() - 8],
            unreadable(),
        ),
        ("gzip with a wrong checksum", &[g], &wrong_sum, unreadable()),
        (
            "gzip with garbage behind",
            &[g],
            &[packed.as_slice(), b"garbage"].concat(),
            unreadable(),
        ),
        ("gzip that is plain", &[g], &order, unreadable()),
        (
            "gzip of nothing",
            &[g],
            &gzip(b""),
            Want::refused(400, "json_invalid"),
        ),
        (
            "gzip twice over",
            &[g],
            &gzip(&packed),
            Want::refused(400, "json_invalid"),
        ),
        (
            "deflate",
            &[("Content-Encoding", b"deflate")],
            &deflate(&order),
            unsupported(),
        ),
        ("br", &[("Content-Encoding", b"br")], &order, unsupported()),
        (
            "gzip, gzip",
            &[("Content-Encoding", b"gzip, gzip")],
            &gzip(&packed),
            unsupported(),
        ),
        (
            "gzip in two headers",
            &[g, g],
            &gzip(&packed),
            unsupported(),
        ),
        (
            "an empty encoding",
            &[("Content-Encoding", b"")],
            &order,
            unsupported(),
        ),
        (
            "an unknown encoding",
            &[("Content-Encoding", b"gz\xffip")],
            &order,
            unsupported(),
        ),
    ];
    rows.into_iter()
        .map(|(name, headers, body, want)| {
            let headers = [&[JSON], headers].concat();
            request(
                &format!("Content-Encoding: {name}"),
                POST,
                &headers,
                body,
                want,
            )
        })
        .collect()
}
