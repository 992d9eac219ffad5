//! Orders to push: those of a real shop where the file is given, else made-up ones of their shape.

use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};

use super::scale::rounds;

/// One JSON document a line, in order of time: the file of `KEYFOLD_TEST_ORDERS` (NDJSON, plain or
/// gzip), cut to `KEYFOLD_TEST_ROUNDS` if that is set, or as many made-up ones.
pub fn orders(default: usize) -> Vec<String> {
    let Some(path) = std::env::var_os("KEYFOLD_TEST_ORDERS") else {
        return (0..rounds(default))
            .map(|n| made_up(n).to_string())
            .collect();
    };
    let bytes = std::fs::read(&path).expect("KEYFOLD_TEST_ORDERS can be read");
    let mut text = String::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut decoder = MultiGzDecoder::new(bytes.as_slice());
        decoder.read_to_string(&mut text).expect("gzip of UTF-8");
    } else {
        text = String::from_utf8(bytes).expect("UTF-8");
    }
    text.lines()
        .take(rounds(usize::MAX))
        .map(str::to_owned)
        .collect()
}

/// Two in three by one of 150 customers, some of whom share a phone; the others by guests.
fn made_up(n: usize) -> Value {
    let regular = n * 7 % 150;
    let customer = if n % 3 == 2 {
        json!({ "phone": format!("+3361300{:04}", n % 90), "locale": "fr" })
    } else {
        json!({
            "phone": format!("+3361200{:04}", regular / 2),
            "external_id": format!("C{regular}"),
            "locale": "en",
        })
    };
    let items: Vec<Value> = (0..=n % 20)
        .map(|line| {
            json!({
                "sku": format!("{}", 20_000 + line * 31),
                "title": "KNITTED UNION FLAG HOT WATER BOTTLE",
                "quantity": line + 1,
                "price": "3.39",
            })
        })
        .collect();
    json!({
        "external_id": format!("{}", 536_365 + n),
        "placed_at": format!("2010-12-{:02}T08:{:02}:00Z", 1 + n / 60 % 28, n % 60),
        "total_price": format!("{}.{:02}", n * 13 % 900, n % 100),
        "currency": "GBP",
        "financial_status": if n.is_multiple_of(17) { "refunded" } else { "paid" },
        "fulfillment_status": "fulfilled",
        "customer": customer,
        "line_items": items,
        "tags": ["United Kingdom"],
        "metadata": { "lines": n % 20 + 1 },
    })
}
