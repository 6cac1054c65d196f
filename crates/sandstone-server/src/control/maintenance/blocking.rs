//! Asynchronous streams for code that blocks. To be used on threads where blocking is fine.

use std::future::Future;
use std::io::{self, Read, Write};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{Incoming, Outgoing, Tool};

/// Where bytes come from. Every wait is bounded.
pub(in crate::control) trait Source {
    /// The next piece, `None` at the end.
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;
}

/// Where bytes go. Every wait is bounded.
pub(in crate::control) trait Sink {
    /// Passes a piece on.
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send;
}

impl Source for Incoming {
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send {
        Self::next(self)
    }
}

impl Source for &mut Tool {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.read().await?)
    }
}

impl Sink for &mut Tool {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        Ok(self.write(bytes).await?)
    }
}

impl Sink for &Outgoing {
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send {
        Outgoing::send(self, bytes)
    }
}

/// Reads from a source.
#[derive(Debug)]
pub(in crate::control) struct Reader<S> {
    source: S,
    rest: Bytes,
    runtime: Handle,
}

impl<S> Reader<S> {
    /// A reader for a thread of this runtime that may block.
    pub(in crate::control) fn new(source: S, runtime: Handle) -> Self {
        Self {
            source,
            rest: Bytes::new(),
            runtime,
        }
    }
}

impl<S: Source> Read for Reader<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.runtime.block_on(self.source.next())? {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.rest.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

/// Writes to a sink.
#[derive(Debug)]
pub(in crate::control) struct Writer<S> {
    sink: S,
    runtime: Handle,
}

impl<S> Writer<S> {
    /// A writer for a thread of this runtime that may block.
    pub(in crate::control) fn new(sink: S, runtime: Handle) -> Self {
        Self { sink, runtime }
    }
}

impl<S: Sink> Write for Writer<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        self.runtime.block_on(self.sink.send(piece))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
