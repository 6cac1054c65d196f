//! One client: what russh asks, answered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use russh::server::{
    Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Error, Pty, Sig};
use sandstone_api::SandboxId;
use sandstone_protocol::message::{DialTarget, TerminalSize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::inbox::{Flow, Inbox, InboxReader, inbox};
use super::process::{self, Change, Program, Setup};
use super::{CHANNELS_EVER_MAX, CHANNELS_MAX, Server, forward, signal};
use crate::control::Entered;

/// Signals and sizes of the terminal that a process has not been told of yet.
const CHANGES_MAX: usize = 32;

/// Longest host name (RFC 1035) and path of a unix socket (unix(7)) that are passed on.
const HOST_MAX_BYTES: usize = 255;
const PATH_MAX_BYTES: usize = 107;

/// A client that was let in.
pub(super) struct Guest {
    /// Where it is.
    pub(super) sandbox: SandboxId,
    /// For telling it something.
    pub(super) handle: Handle,
}

/// The state of one connection. russh calls one of its methods at a time; what takes long runs in
/// tasks of its own.
pub(super) struct Connection {
    server: Arc<Server>,
    peer: SocketAddr,
    local: SocketAddr,
    /// Told once the client is let in.
    let_in: Option<oneshot::Sender<Guest>>,
    entered: Option<Entered>,
    flow: Arc<Flow>,
    channels: HashMap<ChannelId, OpenChannel>,
    opened: u32,
    gone: CancellationToken,
    _gone_at_last: DropGuard,
}

/// A channel that is open or being opened.
struct OpenChannel {
    inbox: Inbox,
    /// Fires when the client has closed it, or is gone.
    closed: CancellationToken,
    /// Fires when our side is done with it.
    done: CancellationToken,
    session: SessionState,
}

enum SessionState {
    /// Not a session.
    None,
    /// Nothing runs yet.
    Preparing(Box<Preparing>),
    Running(mpsc::Sender<Change>),
}

struct Preparing {
    setup: Setup,
    input: InboxReader,
    output: ChannelWriteHalf<Msg>,
}

impl Connection {
    pub(super) fn new(
        server: Arc<Server>,
        peer: SocketAddr,
        local: SocketAddr,
        let_in: oneshot::Sender<Guest>,
    ) -> Self {
        let gone = CancellationToken::new();
        Self {
            server,
            peer,
            local,
            let_in: Some(let_in),
            entered: None,
            flow: Arc::default(),
            channels: HashMap::new(),
            opened: 0,
            _gone_at_last: gone.clone().drop_guard(),
            gone,
        }
    }

    /// Lets the client in if there is a sandbox behind the name.
    async fn knock(&mut self, user: &str) -> Auth {
        // Why it could not be looked up is logged there. To the client it is all the same.
        match self.server.control.enter(user).await {
            Ok(Some(entered)) => {
                self.entered = Some(entered);
                Auth::Accept
            }
            Ok(None) | Err(_) => Auth::reject(),
        }
    }

    /// Takes note of a channel, unless there are too many.
    fn open(&mut self, id: ChannelId) -> Option<(InboxReader, Tokens)> {
        self.channels
            .retain(|_, channel| !channel.done.is_cancelled());
        if self.channels.len() >= CHANNELS_MAX || self.opened >= CHANNELS_EVER_MAX {
            return None;
        }
        self.opened += 1;
        let (inbox, reader) = inbox(&self.flow);
        let tokens = Tokens {
            closed: self.gone.child_token(),
            done: CancellationToken::new(),
        };
        let channel = OpenChannel {
            inbox,
            closed: tokens.closed.clone(),
            done: tokens.done.clone(),
            session: SessionState::None,
        };
        self.channels.insert(id, channel);
        Some((reader, tokens))
    }

    /// Opens a channel to a server in the sandbox, if there is one.
    async fn forward(
        &mut self,
        channel: Channel<Msg>,
        target: Option<DialTarget>,
        reply: ChannelOpenHandle,
        handle: Handle,
    ) {
        let (Some(target), Some(entered)) = (target, &self.entered) else {
            return reply.reject(ChannelOpenFailure::ConnectFailed).await;
        };
        let agent = entered.agent.clone();
        let Some((input, tokens)) = self.open(channel.id()) else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let (_, output) = channel.split();
        tokio::spawn(async move {
            let _done = tokens.done.drop_guard();
            let forwarding = forward::run(&agent, target, reply, input, &output, &handle);
            tokio::select! {
                () = forwarding => {}
                () = tokens.closed.cancelled() => {}
            }
        });
    }

    /// Starts the program of a session, once.
    fn start(
        &mut self,
        id: ChannelId,
        program: Program,
        session: &mut Session,
    ) -> Result<(), Error> {
        let (Some(entered), Some(channel)) = (&self.entered, self.channels.get_mut(&id)) else {
            return session.channel_failure(id);
        };
        let (sender, changes) = mpsc::channel(CHANGES_MAX);
        let started = SessionState::Running(sender);
        let preparing = match std::mem::replace(&mut channel.session, started) {
            SessionState::Preparing(preparing) => preparing,
            other => {
                channel.session = other;
                return session.channel_failure(id);
            }
        };
        let Preparing {
            mut setup,
            input,
            output,
        } = *preparing;
        setup.set_addresses(self.peer, self.local);
        let running = process::Session {
            agent: entered.agent.clone(),
            handle: session.handle(),
            output,
            input,
            changes,
            closed: channel.closed.clone(),
        };
        let done = channel.done.clone();
        tokio::spawn(async move {
            let _done = done.drop_guard();
            running.run(setup, program).await;
        });
        session.channel_success(id)
    }

    fn preparing(&mut self, id: ChannelId) -> Option<&mut Setup> {
        match &mut self.channels.get_mut(&id)?.session {
            SessionState::Preparing(preparing) => Some(&mut preparing.setup),
            SessionState::None | SessionState::Running(_) => None,
        }
    }

    /// Tells a running process of something. When it is too slow to hear, it is not told.
    fn change(&self, id: ChannelId, change: Change) -> bool {
        match self.channels.get(&id).map(|channel| &channel.session) {
            Some(SessionState::Running(changes)) => changes.try_send(change).is_ok(),
            _ => false,
        }
    }
}

struct Tokens {
    closed: CancellationToken,
    done: CancellationToken,
}

/// Answers a request that the client wants to know the outcome of.
fn answer(session: &mut Session, id: ChannelId, is_granted: bool) -> Result<(), Error> {
    if is_granted {
        session.channel_success(id)
    } else {
        session.channel_failure(id)
    }
}

/// A size as programs know it. A client that does not know its own says 0.
fn size(columns: u32, rows: u32) -> TerminalSize {
    let fits = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    TerminalSize {
        columns: fits(columns),
        rows: fits(rows),
    }
}

/// What a client of local forwarding wants to reach, as the sandbox sees it.
fn tcp_target(host: &str, port: u32) -> Option<DialTarget> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    match host {
        "" | "localhost" | "127.0.0.1" | "::1" => Some(DialTarget::Port(port)),
        _ if host.len() > HOST_MAX_BYTES || host.contains('\0') => None,
        _ => Some(DialTarget::Host(host.to_owned(), port)),
    }
}

fn unix_target(path: &str) -> Option<DialTarget> {
    let is_path = path.starts_with('/') && path.len() <= PATH_MAX_BYTES && !path.contains('\0');
    is_path.then(|| DialTarget::Unix(path.to_owned()))
}

impl Handler for Connection {
    type Error = Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Error> {
        Ok(self.knock(user).await)
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        _: PublicKeyOffer<'_>,
    ) -> Result<Auth, Error> {
        Ok(self.knock(user).await)
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        _: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Error> {
        Ok(self.knock(user).await)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Error> {
        let (Some(let_in), Some(entered)) = (self.let_in.take(), &self.entered) else {
            return Err(Error::Inconsistent);
        };
        let guest = Guest {
            sandbox: entered.sandbox,
            handle: session.handle(),
        };
        let_in.send(guest).map_err(|_| Error::Disconnect)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        let id = channel.id();
        let Some((input, _)) = self.open(id) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let (_, output) = channel.split();
        if let Some(open) = self.channels.get_mut(&id) {
            open.session = SessionState::Preparing(Box::new(Preparing {
                setup: Setup::default(),
                input,
                output,
            }));
        }
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Error> {
        let target = tcp_target(host, port);
        self.forward(channel, target, reply, session.handle()).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Error> {
        let target = unix_target(path);
        self.forward(channel, target, reply, session.handle()).await;
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Error> {
        if let Some(channel) = self.channels.get(&id) {
            if let Err(overrun) = channel.inbox.push(data) {
                tracing::warn!(peer = %self.peer, %overrun, "an SSH connection is ended");
                return Err(Error::Disconnect);
            }
            self.flow.pause().await;
        }
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.flow.window()
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Error> {
        if let Some(channel) = self.channels.get(&id) {
            channel.inbox.end();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Error> {
        if let Some(channel) = self.channels.remove(&id) {
            channel.closed.cancel();
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        let is_granted = self
            .preparing(id)
            .is_some_and(|setup| setup.set_terminal(term, size(columns, rows)));
        answer(session, id, is_granted)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        let is_granted = self
            .preparing(id)
            .is_some_and(|setup| setup.set_variable(name, value));
        answer(session, id, is_granted)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Error> {
        self.start(id, Program::Shell, session)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Error> {
        match std::str::from_utf8(command) {
            Ok(command) => self.start(id, Program::Command(command.to_owned()), session),
            // The agent's protocol has texts for arguments.
            Err(_) => session.channel_failure(id),
        }
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        match name {
            "sftp" => self.start(id, Program::Sftp, session),
            _ => session.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        let size = size(columns, rows);
        let is_granted = match self.preparing(id) {
            Some(setup) => setup.resize(size),
            None => self.change(id, Change::Resize(size)),
        };
        answer(session, id, is_granted)
    }

    async fn signal(&mut self, id: ChannelId, name: Sig, _: &mut Session) -> Result<(), Error> {
        if let Some(number) = signal::number(&name) {
            self.change(id, Change::Signal(number));
        }
        Ok(())
    }

    // The defaults refuse remote forwarding, of ports and of sockets, and agent forwarding.

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fit() {
        let fitted = size(70_000, 0);
        assert_eq!((fitted.columns, fitted.rows), (u16::MAX, 0));
    }

    #[test]
    fn targets_are_checked() {
        assert_eq!(tcp_target("localhost", 80), Some(DialTarget::Port(80)));
        assert_eq!(tcp_target("::1", 80), Some(DialTarget::Port(80)));
        let host = DialTarget::Host("example.com".to_owned(), 65535);
        assert_eq!(tcp_target("example.com", 65535), Some(host));
        for (name, port) in [
            ("a", 0),
            ("a", 65536),
            ("a\0b", 80),
            (&*"a".repeat(256), 80),
        ] {
            assert_eq!(tcp_target(name, port), None, "{name:?} {port}");
        }
        let path = DialTarget::Unix("/tmp/x".to_owned());
        assert_eq!(unix_target("/tmp/x"), Some(path));
        for path in ["", "tmp/x", "/a\0", &format!("/{}", "a".repeat(107))] {
            assert_eq!(unix_target(path), None, "{path:?}");
        }
    }
}
