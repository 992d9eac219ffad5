//! What is refused for what is written, and for what it resolves to when it is saved.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::super::{Allowed, Guard, Refused, Times};

/// Spellings of addresses that are not on the internet, one a line.
const INTERNAL: &str = include_str!("internal_addresses.txt");

const PUBLIC: [&str; 60] = [
    "https://example.com/",
    "https://example.com./hooks?a=b#c",
    "HTTP://EXAMPLE.COM:8080/",
    "https://exämple.de/é",
    "https://localhost.example.com/",
    "https://localhosts/",
    "https://mylocalhost/",
    "https://127.0.0.1.example.com/",
    "https://10.example/",
    "http://@example.com/",
    "https://example.com/@127.0.0.1/",
    "https://example.com\\@127.0.0.1:80@127.0.0.1/",
    "https://example.com/?to=http://127.0.0.1/",
    "https://example.com/a|b{c}^[d]`\"<e>?f={g}|[h]^`'\"<i>#j",
    "https://example.com/#@127.0.0.1/",
    "http://1.1.1.1:8080/",
    "http://8.8.8.8/",
    "http://134744072/",
    "http://0x08080808/",
    "http://1.0.0.0/",
    "http://9.255.255.255/",
    "http://11.0.0.0/",
    "http://100.63.255.255/",
    "http://100.128.0.0/",
    "http://126.255.255.255/",
    "http://128.0.0.0/",
    "http://169.253.255.255/",
    "http://169.255.0.0/",
    "http://172.15.255.255/",
    "http://172.32.0.0/",
    "http://191.255.255.255/",
    "http://192.0.1.0/",
    "http://192.0.1.255/",
    "http://192.0.3.0/",
    "http://192.88.98.255/",
    "http://192.88.100.0/",
    "http://192.167.255.255/",
    "http://192.169.0.0/",
    "http://198.17.255.255/",
    "http://198.20.0.0/",
    "http://198.51.99.255/",
    "http://198.51.101.0/",
    "http://203.0.112.255/",
    "http://203.0.114.0/",
    "http://223.255.255.255/",
    "http://[2000::]/",
    "http://[2001:200::]/",
    "http://[2001:db7:ffff:ffff:ffff:ffff:ffff:ffff]/",
    "http://[2001:db9::]/",
    "http://[2001:4860:4860::8888]:8443/",
    "http://[2003::]/",
    "http://[2606:4700:4700::1111]/",
    "http://[2a00:1450:4001:81b::200e]/",
    "http://[3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff]/",
    "http://[3fff:1000::]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[::ffff:808:808]/",
    "http://[64:ff9b::8.8.8.8]/",
    "http://[64:ff9b::808:808]/",
    "http://[2000:0:0:0:0:ffff:127.0.0.1]/",
];

fn url(text: &str) -> Url {
    Url::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn guard(allowed: &str) -> Guard {
    Guard::new(Allowed::parse(allowed).expect("a list"))
}

/// A guard whose names all resolve to this.
fn resolving_to(allowed: &str, found: &[&str]) -> Guard {
    let found: Vec<IpAddr> = found.iter().map(|text| text.parse().unwrap()).collect();
    Guard {
        lookup: Arc::new(move |_| Box::pin(std::future::ready(Ok(found.clone())))),
        ..guard(allowed)
    }
}

#[test]
fn no_spelling_of_an_internal_address_passes() {
    let guard = guard("");
    let (mut by_parser, mut internal, mut otherwise) = (Vec::new(), 0, 0);
    for text in INTERNAL.lines() {
        let Ok(url) = Url::parse(text) else {
            by_parser.push(text);
            continue;
        };
        match guard.check(&url) {
            Err(Refused::Internal) => internal += 1,
            Err(Refused::Credentials | Refused::NotHttp) => otherwise += 1,
            Ok(()) => panic!("{text} passes as {url}"),
        }
    }
    let counts = (internal, otherwise, by_parser.len());
    assert_eq!(counts, (308, 21, 31), "{by_parser:?}");
}

#[test]
fn what_is_on_the_internet_passes() {
    for text in PUBLIC {
        assert_eq!(guard("").check(&url(text)), Ok(()), "{text}");
    }
}

#[test]
fn names_and_passwords_and_other_schemes_are_refused_everywhere() {
    let refused = |text: &str| guard("0.0.0.0/0,::/0").check(&url(text)).err();
    for text in [
        "http://a@example.com/",
        "http://:b@10.0.0.1/",
        "http://a:b@c/",
    ] {
        assert_eq!(refused(text), Some(Refused::Credentials), "{text}");
    }
    for text in [
        "ftp://example.com/",
        "mailto:a@example.com",
        "http://a{b}/",
        "http://a..b/",
    ] {
        assert_eq!(refused(text), Some(Refused::NotHttp), "{text}");
    }
}

#[test]
fn an_allowed_network_is_allowed_in_every_spelling_and_no_other() {
    let six = guard("::/0");
    let guard = guard("127.0.0.0/8, fd00::/8,192.168.7.7,[fe80::1],::ffff:10.0.0.1");
    let passes = |text: &str| guard.check(&url(text)).is_ok();
    for text in [
        "http://127.1:9000/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://localhost:8080/",
        "http://app.localhost./",
        "http://[fd12::1]/",
        "http://192.168.7.7/",
        "http://[fe80::1]/",
        "http://10.0.0.1/",
    ] {
        assert!(passes(text), "{text}");
    }
    for text in [
        "http://10.0.0.2/",
        "http://192.168.7.8/",
        "http://[fe80::2]/",
        "http://[::1]/",
        "http://[fc00::1]/",
        "http://[::127.0.0.1]/",
    ] {
        assert!(!passes(text), "{text}");
    }
    assert!(six.check(&url("http://[::1]/")).is_ok());
    assert!(six.check(&url("http://[::ffff:127.0.0.1]/")).is_err());
}

#[test]
fn an_allowed_name_is_allowed_with_its_dot_and_in_capitals() {
    let guard = guard("LocalHost., bücher.internal");
    for text in ["http://localhost/", "http://LOCALHOST.:80/"] {
        assert_eq!(guard.check(&url(text)), Ok(()), "{text}");
    }
    for text in ["http://app.localhost/", "http://127.0.0.1/"] {
        assert_eq!(guard.check(&url(text)), Err(Refused::Internal), "{text}");
    }
    assert!(guard.allowed.name("xn--bcher-kva.internal"));
    assert!(!guard.allowed.name("internal"));
    assert!(!guard.allowed.name(""));
}

#[test]
fn a_list_is_refused_with_the_entry_that_is_wrong() {
    assert_eq!(Allowed::parse(""), Ok(Allowed::default()));
    assert_eq!(Allowed::parse(" , ,"), Ok(Allowed::default()));
    for entry in [
        "10.0.0.0/33",
        "10.0.0/8",
        "10.0.0.0/",
        "/8",
        "::/129",
        "http://erp",
        "erp/hooks",
        "erp:80",
        "127.0.0.1:80",
        "*.internal",
        "10.0.*",
        "10.0.0.0-10.0.0.9",
        "1.2.3.4.5",
        "a b",
        ".",
        "[::1",
        "a@b",
    ] {
        let fault = Allowed::parse(&format!("erp,{entry}, 10.0.0.0/8")).expect_err(entry);
        assert_eq!(
            fault,
            format!(
                "must list hosts and networks, like receiver.internal,10.0.0.0/8: `{entry}` is \
                 neither"
            )
        );
    }
}

#[tokio::test]
async fn a_name_is_saved_only_if_nothing_it_resolves_to_is_internal() {
    let address = url("https://shop.example/hooks");
    for (allowed, found, saved) in [
        ("", &["93.184.215.14"][..], true),
        ("", &["93.184.215.14", "10.0.0.1"], false),
        ("", &["::ffff:127.0.0.1"], false),
        ("", &[], true),
        ("10.0.0.0/8", &["93.184.215.14", "10.0.0.1"], true),
        ("10.0.0.0/8", &["10.0.0.1", "127.0.0.1"], false),
        ("SHOP.example.", &["127.0.0.1"], true),
        ("example", &["127.0.0.1"], false),
    ] {
        let judged = resolving_to(allowed, found).check_now(1, &address).await;
        assert_eq!(judged.is_ok(), saved, "{allowed} {found:?}");
    }
    let guard = resolving_to("127.0.0.0/8", &["127.0.0.1", "::1"]);
    assert_eq!(guard.check_now(1, &url("http://localhost/")).await, Ok(()));
    let judged = guard.check_now(1, &url("http://10.0.0.1/")).await;
    assert_eq!(judged, Err(Refused::Internal));
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_now_is_saved() {
    let address = url("https://shop.example/hooks");
    let unknown = Guard {
        lookup: Arc::new(|_| Box::pin(async { Err(io::Error::other("unknown")) })),
        ..guard("")
    };
    assert_eq!(unknown.check_now(1, &address).await, Ok(()));
    let patient = guard("");
    let silent = Guard {
        lookup: Arc::new(|_| Box::pin(std::future::pending())),
        times: Times {
            lookup: Duration::from_millis(10),
            ..patient.times
        },
        ..patient
    };
    assert_eq!(silent.check_now(1, &address).await, Ok(()));
}

#[tokio::test]
async fn the_systems_resolver_is_asked() {
    let found = (guard("").lookup)("localhost".to_owned()).await;
    let found = found.expect("every machine knows it");
    assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
}

#[test]
fn a_refusal_names_no_address() {
    for refused in [Refused::Internal, Refused::Credentials, Refused::NotHttp] {
        let text = refused.to_string();
        assert!(
            !text.contains(|letter: char| letter.is_ascii_digit()),
            "{text}"
        );
    }
}
