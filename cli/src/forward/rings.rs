//! The rings that a configuration stands for now, by name.

use super::super::address::{Address, Named};
use super::settings::{RingSource, verify_name};
use shared_block_ring::device::shown;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A ring to forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingSpec {
    pub address: PathBuf,
    pub sector_size: Option<u32>,
}

/// Remedies for names of rings, for messages: what the user can do depends on the command.
#[derive(Debug, Clone, Copy)]
pub struct Remedies {
    /// About a name that cannot be used.
    pub unusable: &'static str,
    /// About a name that two rings have.
    pub twin: &'static str,
}

/// The remedies of a command that has a configuration.
pub const CONFIGURE: Remedies = Remedies {
    unusable: "configure one",
    twin: "give one of them another name: [[ring]] with address and name",
};

/// The rings by name, and what is wrong with some of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub rings: BTreeMap<String, RingSpec>,
    /// Errors that the configuration itself has, whatever files there are.
    pub refused: Vec<String>,
    /// Errors of what patterns match now.
    pub odd: Vec<String>,
    addresses: BTreeSet<PathBuf>,
}

/// Finds the rings of `sources`. A ring that two of them name is one ring.
pub fn find(sources: &[RingSource], remedies: Remedies) -> Found {
    let mut found = Found::default();
    // Rings with names of their own first: a pattern that matches them, too, changes nothing.
    let (plain, patterns): (Vec<_>, Vec<_>) =
        sources.iter().partition(|source| source.pattern().is_none());
    for source in plain {
        if let Err(e) =
            found.add(source.name.clone(), &source.address, source.sector_size, remedies)
        {
            found.refused.push(e);
        }
    }
    for source in patterns {
        let Some(pattern) = source.pattern() else { continue };
        for address in matches(&pattern) {
            if let Err(e) = found.add(None, &address, source.sector_size, remedies) {
                found.odd.push(e);
            }
        }
    }
    found
}

/// Returns the addresses that a pattern matches, in order.
pub fn matches(pattern: &Named) -> impl Iterator<Item = PathBuf> {
    // Verified before; a folder that cannot be read has no matches.
    let paths = pattern.path().and_then(Path::to_str).and_then(|text| glob::glob(text).ok());
    let named = if let Named::Unix(_) = pattern { Named::Unix } else { Named::Path };
    paths.into_iter().flatten().flatten().map(move |path| named(path).to_os_string().into())
}

impl Found {
    fn add(
        &mut self,
        name: Option<String>,
        address: &Path,
        sector_size: Option<u32>,
        Remedies { unusable, twin }: Remedies,
    ) -> Result<(), String> {
        if name.is_none() && self.addresses.contains(address) {
            return Ok(());
        }
        let shown_address = shown(address);
        let name = match name {
            Some(name) => name,
            None => name_of(address)
                .ok_or_else(|| format!("{shown_address}: its name is not UTF-8 ({unusable})"))?,
        };
        verify_name(&name).map_err(|e| format!("{shown_address}: {e} ({unusable})"))?;
        if let Some(other) = self.rings.get(&name) {
            return Err(format!(
                "{shown_address} and {} both have the name {name} ({twin})",
                shown(&other.address)
            ));
        }
        self.addresses.insert(address.to_owned());
        self.rings.insert(name, RingSpec { address: address.to_owned(), sector_size });
        Ok(())
    }
}

/// Returns the name of a ring that none was configured for: the stem of its file or socket, or what
/// its address has behind the prefix.
fn name_of(address: &Path) -> Option<String> {
    match Named::from(address) {
        Named::Serial(text) | Named::Pci(text) => text.into_string().ok(),
        Named::Path(path) | Named::Unix(path) | Named::VhostUser(path) => {
            path.file_stem().and_then(OsStr::to_str).map(str::to_owned)
        }
    }
}

impl RingSpec {
    pub fn address(&self) -> Address {
        let source =
            RingSource { address: self.address.clone(), name: None, sector_size: self.sector_size };
        Address::new(self.address.clone(), source.sector_size())
    }

    /// Returns whether this process is the only one that can use the ring's disk.
    pub fn is_driven(&self) -> bool {
        Named::from(self.address.as_path()).is_driven()
    }

    /// Returns whether the ring was got from a backend at a socket that is there no more.
    pub fn is_socket_gone(&self) -> bool {
        matches!(Named::from(self.address.as_path()), Named::Unix(path) if !path.exists())
    }

    /// Returns the address as messages show it.
    pub fn shown(&self) -> String {
        shown(&self.address)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn source(address: &str) -> RingSource {
        RingSource::new(OsStr::new(address)).unwrap()
    }

    #[test]
    fn ring_has_the_name_of_its_file_unless_configured() {
        for (address, name) in [
            ("unix:/run/blockring/web-1.out", "web-1"),
            ("/var/lib/rings/ring.img", "ring"),
            ("serial:commands", "commands"),
            ("vhost-user:/run/db.sock", "db"),
            ("pci:0000:00:04.0", "0000:00:04.0"),
        ] {
            let found = find(&[source(address)], CONFIGURE);
            assert_eq!(found.rings.keys().collect::<Vec<_>>(), [name]);
        }
        let named = RingSource { name: Some("x".to_owned()), ..source("a.img") };
        assert_eq!(find(&[named], CONFIGURE).rings.keys().collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn name_that_is_used_twice_is_refused_with_both_addresses() {
        let found =
            find(&[source("/a/ring.img"), source("/b/ring.img"), source("/a/ring.img")], CONFIGURE);
        assert_eq!(found.rings.len(), 1);
        assert_eq!(found.refused.len(), 1);
        for word in ["/a/ring.img", "/b/ring.img", "name ring"] {
            assert!(found.refused[0].contains(word), "{}", found.refused[0]);
        }
    }

    #[test]
    fn pattern_finds_what_is_there_and_no_ring_twice() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.out", "b.out", "c.in", "b.x.out"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let path = |name: &str| format!("unix:{}/{name}", dir.path().display());
        let named = RingSource { name: Some("first".to_owned()), ..source(&path("a.out")) };
        let found = find(&[source(&path("*.out")), named], CONFIGURE);
        assert_eq!(found.rings.keys().collect::<Vec<_>>(), ["b", "b.x", "first"]);
        std::fs::write(dir.path().join("b.y"), "").unwrap();
        let found = find(&[source(&path("*"))], CONFIGURE);
        assert_eq!((found.refused.len(), found.odd.len()), (0, 1));
        assert!(found.odd[0].contains("name b"), "{:?}", found.odd);
    }
}
