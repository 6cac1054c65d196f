//! How many connections there may be: of strangers in all and from one address, and of people who
//! were let in, for each sandbox and in all.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandstone_api::SandboxId;

/// Connections that have not said yet who they are.
const STRANGERS_MAX: usize = 128;

/// The same from one address, so that one host cannot keep all others out.
const STRANGERS_OF_ADDRESS_MAX: usize = 32;

/// Connections to sandboxes.
const GUESTS_MAX: usize = 1024;

/// Connections to one sandbox.
pub(super) const GUESTS_OF_SANDBOX_MAX: usize = 32;

/// Counts the connections there are.
#[derive(Debug)]
pub(super) struct Admission {
    strangers: Arc<Places<IpAddr>>,
    guests: Arc<Places<SandboxId>>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            strangers: Places::new(STRANGERS_MAX, STRANGERS_OF_ADDRESS_MAX),
            guests: Places::new(GUESTS_MAX, GUESTS_OF_SANDBOX_MAX),
        }
    }
}

impl Admission {
    /// A place for a connection from `address` that has not said who it is; nothing when there is
    /// none left.
    pub(super) fn stranger(&self, address: IpAddr) -> Option<Place<IpAddr>> {
        self.strangers.take(network(address))
    }

    /// A place for a connection to the sandbox; nothing when there is none left.
    pub(super) fn guest(&self, sandbox: SandboxId) -> Option<Place<SandboxId>> {
        self.guests.take(sandbox)
    }
}

/// What stands for one host: an IPv4 address, or the /64 network that one IPv6 host has to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            Ipv6Addr::from_bits(network).into()
        }
    }
}

#[derive(Debug)]
struct Places<K> {
    most: usize,
    most_of_one: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by_key: HashMap<K, usize>,
}

/// Somebody's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place<K: Copy + Eq + Hash> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Copy + Eq + Hash> Places<K> {
    fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_of_one,
            taken: Mutex::new(Taken {
                all: 0,
                by_key: HashMap::new(),
            }),
        })
    }

    fn take(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut taken = self.lock();
        if taken.all >= self.most {
            return None;
        }
        let of_one = taken.by_key.entry(key).or_insert(0);
        // A key that is refused has places taken, so no entry is left for nothing.
        if *of_one >= self.most_of_one {
            return None;
        }
        *of_one += 1;
        taken.all += 1;
        Some(Place {
            places: self.clone(),
            key,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        // Nothing panics while it holds the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        if let Some(of_one) = taken.by_key.get_mut(&self.key) {
            *of_one -= 1;
            if *of_one == 0 {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let admission = Admission::default();
        let greedy = address("192.0.2.1");
        let places: Vec<_> = (0..STRANGERS_OF_ADDRESS_MAX)
            .map(|_| admission.stranger(greedy).unwrap())
            .collect();
        assert!(admission.stranger(greedy).is_none());
        assert!(admission.stranger(address("::ffff:192.0.2.1")).is_none());
        assert!(admission.stranger(address("192.0.2.2")).is_some());
        drop(places);
        assert!(admission.stranger(greedy).is_some());
        assert!(admission.strangers.lock().by_key.is_empty());
    }

    #[test]
    fn an_ipv6_host_is_its_network() {
        let admission = Admission::default();
        let _places: Vec<_> = (0..STRANGERS_OF_ADDRESS_MAX)
            .map(|host| {
                let host = address(&format!("2001:db8::{host:x}"));
                admission.stranger(host).unwrap()
            })
            .collect();
        assert!(admission.stranger(address("2001:db8::ffff:1")).is_none());
        assert!(admission.stranger(address("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn all_addresses_together_are_bounded() {
        let admission = Admission::default();
        let places: Vec<_> = (0..200)
            .filter_map(|host| admission.stranger(address(&format!("192.0.2.{host}"))))
            .collect();
        assert_eq!(places.len(), STRANGERS_MAX);
        drop(places);
        assert_eq!(admission.strangers.lock().all, 0);
    }
}
