//! Places that there are only so many of, in all and for each of those who share them.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts who has taken places.
#[derive(Debug)]
pub(crate) struct Places<K> {
    most: usize,
    most_of_one: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by_key: HashMap<K, usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// Nobody gets one.
    All,
    /// Whoever asked has as many as one may have.
    One,
}

/// Somebody's place, until it is dropped.
#[derive(Debug)]
#[must_use = "the place is free again as soon as this is dropped"]
pub(crate) struct Place<K: Copy + Eq + Hash> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Copy + Eq + Hash> Places<K> {
    pub(crate) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_of_one,
            taken: Mutex::new(Taken {
                all: 0,
                by_key: HashMap::new(),
            }),
        })
    }

    /// Whether all places are taken, so that not even a new key would get one.
    pub(crate) fn are_all_taken(&self) -> bool {
        self.lock().all >= self.most
    }

    /// Takes a place.
    pub(crate) fn take(self: &Arc<Self>, key: K) -> Result<Place<K>, Full> {
        let mut taken = self.lock();
        if taken.all >= self.most {
            return Err(Full::All);
        }
        let of_one = taken.by_key.entry(key).or_insert(0);
        // A key that is refused has places taken, so no entry is left for nothing.
        if *of_one >= self.most_of_one {
            return Err(Full::One);
        }
        *of_one += 1;
        taken.all += 1;
        Ok(Place {
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

/// What stands for one host: an IPv4 address, or the /64 network that one IPv6 host has to itself.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            Ipv6Addr::from_bits(network).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        network(text.parse().unwrap())
    }

    #[test]
    fn one_cannot_take_all_places() {
        let places = Places::new(10, 3);
        let greedy = address("192.0.2.1");
        let held: Vec<_> = (0..3).map(|_| places.take(greedy).unwrap()).collect();
        assert_eq!(places.take(greedy).unwrap_err(), Full::One);
        let mapped = address("::ffff:192.0.2.1");
        assert_eq!(places.take(mapped).unwrap_err(), Full::One);
        assert!(places.take(address("192.0.2.2")).is_ok());
        drop(held);
        assert!(places.take(greedy).is_ok());
        assert!(places.lock().by_key.is_empty());
    }

    #[test]
    fn an_ipv6_host_is_its_network() {
        let places = Places::new(10, 3);
        let held: Vec<_> = (0..3)
            .map(|host| {
                places
                    .take(address(&format!("2001:db8::{host:x}")))
                    .unwrap()
            })
            .collect();
        let same = address("2001:db8::ffff:1");
        assert_eq!(places.take(same).unwrap_err(), Full::One);
        assert!(places.take(address("2001:db8:0:1::1")).is_ok());
        drop(held);
    }

    #[test]
    fn all_together_are_bounded() {
        let places = Places::new(10, 3);
        let held: Vec<_> = (0..20).map_while(|key| places.take(key).ok()).collect();
        assert_eq!(held.len(), 10);
        assert!(places.are_all_taken());
        assert_eq!(places.take(99).unwrap_err(), Full::All);
        drop(held);
        assert!(!places.are_all_taken());
        assert_eq!(places.lock().all, 0);
    }
}
