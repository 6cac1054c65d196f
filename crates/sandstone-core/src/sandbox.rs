//! The life of a sandbox.
//!
//! ```text
//!           agent answers            stop asked or it died          node released everything
//! Starting ───────────────► Running ───────────────────► Stopping ─────────────────► Stopped
//!    │                                                      ▲
//!    └──────── start failed, or the server died ────────────┘
//! ```
//!
//! `Stopped` is said only after the volumes are on disk and free.

use crate::{Denied, Timestamp};

/// The states a sandbox can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SandboxState {
    /// The node is making it.
    Starting,
    /// It answers.
    Running,
    /// It is being taken down. Not connectable.
    Stopping,
    /// Gone, volumes free. Terminal.
    Stopped,
}

/// What can happen to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SandboxEvent {
    /// Its agent answered.
    Started,
    /// It is to end, for whatever [`StopReason`].
    Stop,
    /// The node verified that nothing of it is left.
    Released,
}

/// Why a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// A client killed it.
    Killed,
    /// Its primary connection went away.
    SessionEnded,
    /// Its time was over.
    TimedOut,
    /// It could not be started.
    StartFailed,
    /// Its first process ended by itself.
    Exited,
    /// The server was shut down.
    ServerStopped,
    /// The server died, and its session could not go on.
    ServerLost,
}

impl StopReason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Killed,
        Self::SessionEnded,
        Self::TimedOut,
        Self::StartFailed,
        Self::Exited,
        Self::ServerStopped,
        Self::ServerLost,
    ];

    /// The text stored in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::SessionEnded => "session_ended",
            Self::TimedOut => "timed_out",
            Self::StartFailed => "start_failed",
            Self::Exited => "exited",
            Self::ServerStopped => "server_stopped",
            Self::ServerLost => "server_lost",
        }
    }

    /// The reason with this text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// How long a sandbox lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the connection that created it.
    Session,
    /// Until this instant, with or without connections.
    Until(Timestamp),
}

impl SandboxState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Running, Self::Stopping, Self::Stopped];

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Denied`] when `event` cannot happen now; nothing changes.
    pub const fn next(self, event: SandboxEvent) -> Result<Self, Denied> {
        match (self, event) {
            (Self::Starting, SandboxEvent::Started) => Ok(Self::Running),
            // Stopping twice is how a crashed server takes up its work again.
            (Self::Starting | Self::Running | Self::Stopping, SandboxEvent::Stop) => {
                Ok(Self::Stopping)
            }
            (Self::Stopping, SandboxEvent::Released) => Ok(Self::Stopped),
            (Self::Running | Self::Stopping | Self::Stopped, SandboxEvent::Started)
            | (Self::Stopped, SandboxEvent::Stop)
            | (Self::Starting | Self::Running | Self::Stopped, SandboxEvent::Released) => {
                Err(Denied::WrongState)
            }
        }
    }

    /// The text stored in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// The state with this text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        use SandboxEvent::{Released, Started, Stop};
        use SandboxState::{Running, Starting, Stopped, Stopping};
        let allowed = [
            (Starting, Started, Running),
            (Starting, Stop, Stopping),
            (Running, Stop, Stopping),
            (Stopping, Stop, Stopping),
            (Stopping, Released, Stopped),
        ];
        for state in SandboxState::ALL {
            for event in [Started, Stop, Released] {
                let expected = allowed
                    .iter()
                    .find(|(from, on, _)| (*from, *on) == (state, event))
                    .map(|(_, _, to)| *to)
                    .ok_or(Denied::WrongState);
                assert_eq!(state.next(event), expected, "{state:?} {event:?}");
            }
            assert_eq!(SandboxState::from_text(state.as_str()), Some(state));
        }
    }

    #[test]
    fn reasons_survive_text() {
        for reason in StopReason::ALL {
            assert_eq!(StopReason::from_text(reason.as_str()), Some(reason));
        }
    }
}
