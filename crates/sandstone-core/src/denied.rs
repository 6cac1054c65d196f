//! The one way in which a transition is refused.

/// Why a transition is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denied {
    /// The object is not in a state in which this can happen.
    #[error("this cannot happen in the present state")]
    WrongState,
}
