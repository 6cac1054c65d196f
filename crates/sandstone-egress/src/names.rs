//! The addresses that stand for names within one sandbox.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sandstone_core::HostName;

/// Most names that have an address at once; the oldest makes room. A sandbox may ask for names
/// below a wildcard without end.
const NAMES_MAX: u32 = 16 << 10;

/// The first address that stands for a name. 198.18.0.0/15 is for benchmarks, RFC 2544, and so
/// never on the internet.
const FIRST: u32 = u32::from_be_bytes([198, 18, 1, 0]);

/// The names that a sandbox has looked up.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    indices: HashMap<HostName, u32>,
    /// By index.
    names: Vec<HostName>,
    /// The index of the oldest, once all are taken.
    oldest: u32,
}

impl Names {
    /// The address that stands for `name`.
    pub(crate) fn address_of(&self, name: &HostName) -> Ipv4Addr {
        let mut inner = self.lock();
        let index = match inner.indices.get(name) {
            Some(index) => *index,
            None => inner.add(name.clone()),
        };
        Ipv4Addr::from(FIRST + index)
    }

    /// The name that `address` stands for.
    pub(crate) fn name_of(&self, address: Ipv4Addr) -> Option<HostName> {
        let index = u32::from(address).checked_sub(FIRST)?;
        self.lock().names.get(index as usize).cloned()
    }

    /// Each change is complete before the lock is let go, so a poisoned lock guards good data.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn add(&mut self, name: HostName) -> u32 {
        let count = self.names.len() as u32;
        let index = if count < NAMES_MAX {
            self.names.push(name.clone());
            count
        } else {
            let index = self.oldest;
            self.oldest = (index + 1) % NAMES_MAX;
            let evicted = std::mem::replace(&mut self.names[index as usize], name.clone());
            self.indices.remove(&evicted);
            index
        };
        self.indices.insert(name, index);
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u32) -> HostName {
        format!("n{number}.example.com").parse().unwrap()
    }

    #[test]
    fn a_name_keeps_its_address_until_there_are_too_many() {
        let names = Names::default();
        let first = names.address_of(&name(0));
        assert_eq!(first, Ipv4Addr::new(198, 18, 1, 0));
        for number in 1..NAMES_MAX {
            names.address_of(&name(number));
        }
        assert_eq!(names.address_of(&name(0)), first);
        assert_eq!(names.name_of(first), Some(name(0)));
        // One more: the oldest goes.
        assert_eq!(names.address_of(&name(NAMES_MAX)), first);
        assert_eq!(names.name_of(first), Some(name(NAMES_MAX)));
        assert_ne!(names.address_of(&name(0)), first);
        let inner = names.lock();
        assert_eq!(inner.indices.len(), inner.names.len());
        assert_eq!(inner.names.len(), NAMES_MAX as usize);
    }

    #[test]
    fn other_addresses_stand_for_nothing() {
        let names = Names::default();
        names.address_of(&name(0));
        for other in [
            [198, 18, 0, 255],
            [198, 18, 1, 1],
            [1, 1, 1, 1],
            [255; 4],
            [0; 4],
        ] {
            assert_eq!(names.name_of(other.into()), None);
        }
    }
}
