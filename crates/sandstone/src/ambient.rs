//! The real clock and the real randomness.

use sandstone_core::{Clock, Entropy, Timestamp};

/// The system's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the clock comes from"
    )]
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
    }
}

/// The kernel's random number generator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        // getrandom(2) fails only on kernels far older than any we run on; going on without
        // randomness would hand out guessable identifiers.
        getrandom::fill(bytes).expect("the kernel has a random number generator");
    }
}
