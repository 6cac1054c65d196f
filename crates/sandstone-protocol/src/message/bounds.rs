//! How much may be under way on a connection, and how long answers may be.

use super::{HANDLE_BYTES_MAX, HandleOperation, Request, Spawn, StreamId};
use crate::frame::PAYLOAD_MAX_BYTES;

/// Requests that may be unanswered at once; waits for processes count. One host has many clients, and
/// one that waits ten thousand times must not keep another from killing what it waits for.
pub const REQUESTS_MAX: usize = 40_000;

/// Streams that may be open at once.
pub const STREAMS_MAX: usize = 4096;

/// Most bytes of names and values in a sandbox's environment. The kernel accepts little more at an
/// exec.
pub const ENVIRONMENT_MAX_BYTES: usize = 1 << 20;

/// Longest reply, in encoded bytes, to a request whose answer is a number, a path, a description or
/// nothing. Paths are the longest of these, and the system's end at 4096 bytes.
pub const REPLY_MAX_BYTES: usize = 128 << 10;

impl Request {
    /// Longest reply to this request, in encoded bytes.
    #[must_use]
    pub fn reply_max_bytes(&self) -> usize {
        match self {
            Self::ReadDir { .. } | Self::EnvAll => PAYLOAD_MAX_BYTES,
            Self::EnvGet { .. } => ENVIRONMENT_MAX_BYTES + REPLY_MAX_BYTES,
            Self::Handle {
                operation: HandleOperation::Read { length },
                ..
            } => {
                let wanted = usize::try_from(*length).unwrap_or(usize::MAX);
                wanted.min(HANDLE_BYTES_MAX) + REPLY_MAX_BYTES
            }
            Self::Configure(_)
            | Self::Spawn(_)
            | Self::Wait { .. }
            | Self::Kill { .. }
            | Self::HangUp { .. }
            | Self::Dial { .. }
            | Self::Resize { .. }
            | Self::ReadFile { .. }
            | Self::WriteFile { .. }
            | Self::MakeDir { .. }
            | Self::Remove { .. }
            | Self::Stat { .. }
            | Self::Change(_)
            | Self::ReadLink { .. }
            | Self::RealPath { .. }
            | Self::Umask { .. }
            | Self::MakeTemporary(_)
            | Self::Open { .. }
            | Self::Handle { .. }
            | Self::Close { .. }
            | Self::Walk { .. }
            | Self::ExpandGlob { .. }
            | Self::EnvSet { .. }
            | Self::EnvDelete { .. } => REPLY_MAX_BYTES,
        }
    }

    /// The streams that this request names.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamId> {
        match self {
            Self::Spawn(spawn) => spawn.streams(),
            Self::ReadFile { sink: id, .. } | Self::WriteFile { source: id, .. } => vec![*id],
            Self::Dial { source, sink, .. } => vec![*source, *sink],
            Self::Walk { sink, .. } | Self::ExpandGlob { sink, .. } => vec![*sink],
            Self::Configure(_)
            | Self::Resize { .. }
            | Self::Wait { .. }
            | Self::Kill { .. }
            | Self::HangUp { .. }
            | Self::ReadDir { .. }
            | Self::MakeDir { .. }
            | Self::Remove { .. }
            | Self::Stat { .. }
            | Self::Change(_)
            | Self::ReadLink { .. }
            | Self::RealPath { .. }
            | Self::Umask { .. }
            | Self::MakeTemporary(_)
            | Self::Open { .. }
            | Self::Handle { .. }
            | Self::Close { .. }
            | Self::EnvGet { .. }
            | Self::EnvSet { .. }
            | Self::EnvDelete { .. }
            | Self::EnvAll => Vec::new(),
        }
    }
}

impl Spawn {
    /// The streams of the process's standard input, output and error, and of its socket.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamId> {
        let socket = self.socket.map_or([None, None], |socket| {
            [Some(socket.source), Some(socket.sink)]
        });
        [self.stdin, self.stdout, self.stderr]
            .into_iter()
            .chain(socket)
            .flatten()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Answer, Reply, encode};

    #[test]
    fn the_longest_answers_fit() {
        let longest = |answer| encode::<Reply>(&Ok(answer)).len();
        let path = Request::RealPath { path: "/".into() };
        assert!(longest(Answer::Path("x".repeat(4096))) <= path.reply_max_bytes());
        let variable = Request::EnvGet { name: "A".into() };
        let value = "x".repeat(ENVIRONMENT_MAX_BYTES);
        assert!(longest(Answer::Variable(Some(value))) <= variable.reply_max_bytes());
        for length in [0, 1, 100_000, u32::MAX] {
            let read = Request::Handle {
                handle: 1,
                operation: HandleOperation::Read { length },
            };
            let bytes = vec![0; HANDLE_BYTES_MAX.min(length as usize)];
            assert!(longest(Answer::Bytes(bytes)) <= read.reply_max_bytes());
            assert!(read.reply_max_bytes() <= HANDLE_BYTES_MAX + REPLY_MAX_BYTES);
        }
    }
}
