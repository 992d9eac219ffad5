//! Which addresses are public, and which others an operator allows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::Host;

/// What IANA's registry of special-purpose IPv4 addresses
/// (<https://www.iana.org/assignments/iana-ipv4-special-registry>) keeps from the internet. A few
/// anycast addresses in `192.0.0.0/24` are refused with the rest of it: nobody receives there.
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([224, 0, 0, 0], 4),
    // With the broadcast address.
    v4([240, 0, 0, 0], 4),
];

/// All of IPv6 that is given out for the internet.
const GLOBAL_V6: Ipv6Net = v6([0x2000, 0], 3);

/// What is not public of it: protocols (Teredo among them), documentation twice, and 6to4.
/// (<https://www.iana.org/assignments/iana-ipv6-special-registry>)
const SPECIAL_V6: [Ipv6Net; 4] = [
    v6([0x2001, 0], 23),
    v6([0x2001, 0xdb8], 32),
    v6([0x2002, 0], 16),
    v6([0x3fff, 0], 20),
];

/// IPv4 behind a translator (RFC 6052). The network for local translators beside it is not public.
const NAT64: Ipv6Net = v6([0x64, 0xff9b], 96);

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([a, b]: [u16; 2], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// Whether an address is on the internet. An IPv4 address inside an IPv6 one is judged itself.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match carried(address) {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|special| special.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address)
                && !SPECIAL_V6.iter().any(|special| special.contains(&address))
        }
    }
}

/// The IPv4 address that a mapped or translated one leads to; any other one as it is.
fn carried(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if NAT64.contains(&address) => {
            let [.., a, b, c, d] = address.octets();
            IpAddr::from([a, b, c, d])
        }
        canonical => canonical,
    }
}

/// `KEYFOLD_ALLOW_PRIVATE_TARGETS`: hosts and networks that may be called although they are not
/// public, on any port. Nothing, unless something is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// In lower case, as a URL has them.
    names: Vec<String>,
    networks: Vec<IpNet>,
}

impl Allowed {
    /// Reads a list with commas: names, addresses, and networks such as `10.0.0.0/8`.
    ///
    /// # Errors
    /// What was expected, with the entry that is none of these.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut allowed = Self::default();
        let entries = list.split(',').map(str::trim);
        for entry in entries.filter(|entry| !entry.is_empty()) {
            allowed.add(entry).ok_or_else(|| {
                format!(
                    "must list hosts and networks, like receiver.internal,10.0.0.0/8: \
                     `{entry}` is neither"
                )
            })?;
        }
        Ok(allowed)
    }

    fn add(&mut self, entry: &str) -> Option<()> {
        if entry.contains('/') {
            self.networks.push(entry.parse().ok()?);
            return Some(());
        }
        let address = entry.parse().ok().map(|address| match address {
            IpAddr::V4(address) => Host::Ipv4(address),
            IpAddr::V6(address) => Host::Ipv6(address),
        });
        match address.or_else(|| Host::parse(entry).ok())? {
            Host::Ipv4(address) => self.networks.push(IpAddr::from(address).into()),
            Host::Ipv6(address) => self.networks.push(address.to_canonical().into()),
            Host::Domain(name) => self.names.push(plain_name(&name)?.to_owned()),
        }
        Some(())
    }

    /// Whether a name may lead anywhere.
    #[must_use]
    pub fn name(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.');
        let mut names = self.names.iter();
        names.any(|allowed| allowed.eq_ignore_ascii_case(name))
    }

    /// Whether an address is in one of the networks. As with [`is_public`], what counts is the IPv4
    /// address inside.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> bool {
        let ways = [address.to_canonical(), carried(address)];
        let mut networks = self.networks.iter();
        networks.any(|network| ways.iter().any(|address| network.contains(address)))
    }
}

/// A name without its last dot. What can't be one, such as `*.internal`, would be allowed in vain.
fn plain_name(name: &str) -> Option<&str> {
    let name = name.trim_end_matches('.');
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    (!name.is_empty() && name.chars().all(is_plain)).then_some(name)
}
